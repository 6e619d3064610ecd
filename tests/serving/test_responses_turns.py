"""A response's input as a conversation, and as what is drawn."""

from __future__ import annotations

from typing import Any

from flashjanus.serving.http.responses import ResponseBody
from flashjanus.serving.http.responses.turns import conversation_of, prompt_of, turns_of
from response_items import CALL, RED, says, shows, user


def turns(*items: Any, **more: Any) -> list[tuple[str, str]]:
    """As the model reads them: an image as its URL."""
    read = conversation_of(turns_of(ResponseBody.model_validate({"input": [*items], **more})))
    return [(one["role"], "|".join(part.get("text", part.get("image_url")) for part in one["content"])) for one in read]


def test_items_become_turns() -> None:
    drawn = "data:image/webp;base64,AAAA"
    said = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": None,
        "content": [{"type": "output_text", "text": "Here.", "annotations": [], "logprobs": []}],
    }
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    lost = {"type": "image_generation_call", "result": None, "status": "failed"}
    assert turns(user("one"), user("two")) == [("user", "one|\n|two")]
    assert turns(user("draw"), CALL, user("ask")) == [("user", f"{drawn}|ask")]
    assert turns(user("draw"), CALL, said, user("ask")) == [
        ("user", "draw"),
        ("assistant", "Here."),
        ("user", f"{drawn}|ask"),
    ]
    assert turns(CALL, CALL, user("ask")) == [("user", f"{drawn}|{drawn}|ask")]
    assert turns(user(says("draw"), shows(RED)), CALL, user("ask")) == [("user", f"draw|{RED}|{drawn}|ask")]
    assert turns(user("draw"), lost, user("ask")) == [("user", "draw|\n|ask")]
    assert turns(user("ask"), refused, said, user("more")) == [
        ("user", "ask"),
        ("assistant", "No.|\n|Here."),
        ("user", "more"),
    ]
    system = {"role": "developer", "content": [says("Be"), says(" brief.")]}
    assert turns(system, user("ask"), instructions="Speak.") == [
        ("system", "Speak."),
        ("system", "Be| brief."),
        ("user", "ask"),
    ]


def test_what_is_drawn() -> None:
    system = {"role": "system", "content": "Paint in oil."}
    items = [system, user("hello"), {"role": "assistant", "content": "Hi."}, user(says("a "), says("boat"))]
    body = ResponseBody.model_validate({"input": items, "instructions": "Draw at night."})
    assert prompt_of(turns_of(body)) == "Draw at night.\n\nPaint in oil.\n\na boat"
