"""OpenAI's Responses API with its image_generation tool, built on the endpoints of images and chat."""

from flashjanus.serving.http.responses.bodies import ResponseBody
from flashjanus.serving.http.responses.endpoint import create

__all__ = ["ResponseBody", "create"]
