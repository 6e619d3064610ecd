"""`JanusFlowPipeline`: JanusFlow as a pipeline of diffusers."""

from flashjanus.compat.pipeline.pipeline import JanusFlowPipeline, JanusFlowPipelineOutput

__all__ = ["JanusFlowPipeline", "JanusFlowPipelineOutput"]
