"""The models: dual encoders and generative models with their layers."""
