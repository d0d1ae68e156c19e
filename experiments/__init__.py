"""The paper's tables and figures: their definitions, the code that runs and reports them, and what was measured."""
