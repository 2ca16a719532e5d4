"""The live page: numbers of the warehouse's views and the state of the pipeline."""
