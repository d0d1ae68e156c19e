"""The pre-flight: memory, steps, passes and contexts of a run, before it starts."""
