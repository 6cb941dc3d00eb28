"""The GPU engine: rounds on the model that an unmodified vLLM has deployed."""
