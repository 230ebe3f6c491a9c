"""The hierarchical random forest: engine, model packages, import of published models, training."""
