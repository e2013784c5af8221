"""The process that evaluates: the trial worker, its loaded model, and its preemption."""
