"""What a person sees: text, tables, progress, pictures, and exports."""
