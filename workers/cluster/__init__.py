"""The cluster: connection, worker pool, tasks and jobs, by way of Ray."""
