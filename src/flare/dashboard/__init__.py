"""A dashboard of an ablation: a report on W&B where one is logged in, the same as files where not."""
