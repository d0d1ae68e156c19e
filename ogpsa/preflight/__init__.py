"""The pre-flight: memory, steps and passes of a run, before it starts."""
