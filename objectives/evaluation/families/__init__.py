"""Model families: for each kind of model at its kind of task all that a job needs of them."""
