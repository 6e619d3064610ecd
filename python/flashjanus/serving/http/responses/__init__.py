"""OpenAI's Responses API with its image_generation tool, on what draws images and answers conversations."""

from flashjanus.serving.http.responses.bodies import ResponseBody
from flashjanus.serving.http.responses.endpoint import create

__all__ = ["ResponseBody", "create"]
