"""What bodies hold besides plain text -> text that the model reads, a remark, or a refusal that names it.

specification.json classes every field and variant of the vendors' types:

    read       it counts
    inert      by its own meaning it changes no answer
    noted      it has no effect here, which a header of the answer and the log say
    refused    400 that names it
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dsv4_mlx.server.api_errors import invalid, unsupported
from dsv4_mlx.server.protocols.fields import Body

IMAGES = ("image", "image_url", "input_image")
_AUDIO = ("input_audio", "audio", "video_url", "input_video")
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_READABLE = ("text/", "application/json", "application/xml", "application/x-", "application/yaml")
_EMPTY: tuple[Any, ...] = ("", [], {}, False)
_USUAL: tuple[Any, ...] = ("auto", "standard", "summarized", ["direct"])
_RESULTS = ("tool", "function")


@cache
def specification() -> dict[str, Any]:
    """protocol -> fields, tools, choices, items, parts -> name -> class; protocol -> inner -> a field of
    bodies -> field of the objects that it holds -> class."""
    found: dict[str, Any] = json.loads(
        Path(__file__).with_name("specification.json").read_text(encoding="utf-8")
    )
    return found


def notices(protocol: str, body: Body) -> tuple[str, ...]:
    """What of a body has no effect on the answer. Raises ApiError 400 for what would have to have one."""
    known = specification()[protocol]
    said: dict[str, None] = dict.fromkeys(_passed_over("", body, known["fields"]))
    for name, table in known.get("inner", {}).items():
        for one in _objects(body.get(name), known.get("tools", {}) if name == "tools" else None):
            said |= dict.fromkeys(_passed_over(f"{name}.", one, table))
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and isinstance(kind := tool.get("type") or "custom", str):
            if (found := known.get("tools", {}).get(kind)) is None:
                raise unsupported(f"tools: there is no kind {kind[:60]!r} here", "tools")
            if found == "noted":
                said[f"tools of kind {kind} run elsewhere: not offered to the model"] = None
            if kind == "namespace" and tool.get("description"):
                said["tools.description of a namespace has no effect here"] = None
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and known.get("choices", {}).get(str(choice.get("type"))) == "refused":
        raise unsupported(
            f"tool_choice: {choice['type']} runs elsewhere and can't be asked for", "tool_choice"
        )
    for part in _parts(body):
        if part.get("type") in IMAGES:
            said["images are not seen: each is a remark in the prompt"] = None
        if isinstance(asked := part.get("citations"), dict) and asked.get("enabled"):
            said["citations are not made"] = None
    return tuple(said)


def _passed_over(place: str, found: Body, table: dict[str, str]) -> Iterator[str]:
    """Fields without effect; those that say what goes without saying aren't named. Raises ApiError 400."""
    for name, value in found.items():
        kind = table.get(name)
        if value is None or value in _EMPTY or kind in ("read", "inert") or place and value in _USUAL:
            continue
        named = place + name[:60]
        if kind == "refused":
            raise unsupported(f"{named}: this server can't do what it asks for", named.partition(".")[0])
        if named != "messages.name" or found.get("role") not in _RESULTS:  # the call says it
            yield f"{named} {'is not in the specification' if kind is None else 'has no effect here'}"


def _objects(found: Any, kinds: dict[str, str] | None) -> Iterator[Body]:
    """The objects that a field of a body holds; of tools those that are read, by how `kinds` classes them."""
    for one in found if isinstance(found, list) else (found,):
        if not isinstance(one, dict):
            continue
        kind = one.get("type")
        if kinds is None:
            yield one
        elif not isinstance(kind, str) or kinds.get(kind) == "read":
            inner = one.get(kind if isinstance(kind, str) else "function")
            yield inner if isinstance(inner, dict) else one
            yield from _objects(one.get("tools"), kinds)


def _parts(found: Any) -> Iterator[Body]:
    """Every part of every message, item and result."""
    if isinstance(found, list):
        for one in found:
            if isinstance(one, dict):
                yield one
                for name in ("content", "output"):
                    yield from _parts(one.get(name))
    elif isinstance(found, dict):
        for name in ("messages", "input", "system"):
            yield from _parts(found.get(name))


def chat_part(part: Any) -> Any:
    """A part of a message of Chat Completions, as the library takes it. Raises ApiError 400."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return part  # the library says what is wrong with it
    if kind in _TEXTS:
        return {"type": "text", "text": part.get(_TEXTS[kind], "")}
    if kind == "file":
        return {"type": "text", "text": _file(part.get("file"), "messages")}
    if kind in _AUDIO:
        raise unsupported(f"content of type {kind!r} can't be read by this model", "messages")
    return {"type": "image_url", "image_url": {"url": "image:"}} if kind in IMAGES else part


def responses_part(part: Any) -> Any:
    """A part of an item of Responses."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return part
    if kind in _TEXTS:
        return {**part, "type": "input_text" if kind == "text" else kind} if kind != "refusal" else {
            "type": "output_text", "text": part.get("refusal", "")
        }  # fmt: skip
    if kind == "input_file":
        return {"type": "input_text", "text": _file(part, "input")}
    if kind in _AUDIO:
        raise unsupported(f"content of type {kind!r} can't be read by this model", "input")
    return part


def _file(given: Any, param: str) -> str:
    """The text of a file that came with its bytes; its name is the first line."""
    file = given if isinstance(given, dict) else {}
    data = file.get("file_data")
    if not isinstance(data, str):
        raise unsupported("a file without file_data: this server stores and fetches no files", param)
    name = file.get("filename") if isinstance(file.get("filename"), str) else ""
    head, comma, rest = data.partition(",")
    kind = head.removeprefix("data:").partition(";")[0] if comma and head.startswith("data:") else ""
    text = _decoded(rest if comma and head.startswith("data:") else data, kind, param)
    return f"{name}\n{text}" if name else text


def _decoded(data: str, kind: str, param: str) -> str:
    """base64 -> text. Raises ApiError 400 for what is no text, by its media type or by its bytes."""
    named = f"a file of type {kind[:60]!r}" if kind else "a file"
    if kind and not kind.startswith(_READABLE):
        raise unsupported(f"{named} can't be read by this model, expected text", param)
    try:
        text = base64.b64decode(data, validate=True).decode("utf-8-sig")
    except binascii.Error:
        raise invalid(f"{named} is not base64", param) from None
    except UnicodeDecodeError:
        raise unsupported(f"{named} is not UTF-8 text", param) from None
    if "\0" in text:
        raise unsupported(f"{named} holds zero bytes, expected text", param)
    return text


def messages_blocks(content: Any) -> Any:
    """What a message or a tool's result of Messages holds, as the library takes it. Raises ApiError 400."""
    if not isinstance(content, list):
        return content
    out: list[Any] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "document":
            out += _document(block)
        elif kind == "search_result":
            head = "\n".join(str(block[name]) for name in ("title", "source") if block.get(name))
            out += [_text(head), *(messages_blocks(block.get("content")) or ())]
        elif kind == "tool_result":
            out.append({**block, "content": messages_blocks(block.get("content", ""))})
        elif kind in ("container_upload", "browser_state"):
            raise unsupported(f"content of type {kind!r} can't be read by this model", "messages")
        elif kind != "redacted_thinking":  # only its maker can read it
            out.append(block)
    return out


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _document(block: Body) -> list[Any]:
    given = block.get("source")
    source: Body = given if isinstance(given, dict) else {}
    kind, media = source.get("type"), str(source.get("media_type", ""))
    head = [_text(str(block[name])) for name in ("title", "context") if block.get(name)]
    if kind == "text":
        return [*head, _text(str(source.get("data", "")))]
    if kind == "content":
        inside = source.get("content")
        return [*head, *([_text(inside)] if isinstance(inside, str) else messages_blocks(inside or []))]
    if kind == "base64":
        return [*head, _text(_decoded(str(source.get("data", "")), media or "application/pdf", "messages"))]
    raise unsupported(
        f"a document from {str(kind)[:60]!r}: this server stores and fetches no files", "messages"
    )


HOSTED_CALLS = ("server_tool_use", "mcp_tool_use")  # of Messages: another server made and ran them


def hosted_result(block: Body) -> Body:
    """The result of a call that ran elsewhere, as a tool's result of text."""
    content = block.get("content", "")
    if isinstance(content, list) and all(isinstance(b, dict) and b.get("type") == "text" for b in content):
        shown: Any = content
    else:
        shown = content if isinstance(content, str) else plain(content)
    return {"type": "tool_result", "tool_use_id": block.get("tool_use_id"), "content": shown}


def plain(found: Any) -> str:
    """What can be read of a result, as JSON: without what only its maker can read, types and states."""
    return json.dumps(_readable(found), ensure_ascii=False)


def _readable(found: Any) -> Any:
    if isinstance(found, list):
        return [_readable(one) for one in found]
    if isinstance(found, dict):
        hidden = ("encrypted_content", "encrypted_index", "cache_control", "type", "status", "id", "call_id")
        return {k: _readable(v) for k, v in found.items() if k not in hidden and v is not None}
    return found


# Calls of Responses that other servers or the client's own tools ran -> fields that hold their results.
_HOSTED: dict[str, tuple[str, ...]] = {
    "web_search_call": (),
    "file_search_call": ("results",),
    "code_interpreter_call": ("outputs",),
    "image_generation_call": (),
    "mcp_call": ("output", "error"),
    "tool_search_call": (),
    "computer_call": (),
    "local_shell_call": (),
    "shell_call": (),
    "apply_patch_call": (),
    "program": (),
}
_NOT_SAID = ("type", "id", "call_id", "status", "name", "server_label", "caller", "fingerprint", "result")


def hosted_items(item: Body) -> list[Body] | None:
    """A call of another kind than a function's, or its output, as a function's; None for anything else."""
    kind = str(item.get("type"))
    id = item.get("call_id") or item.get("id") or f"call_{kind}"
    if kind in _HOSTED:
        results = _HOSTED[kind]
        given = {k: v for k, v in item.items() if k not in (*_NOT_SAID, *results) and v is not None}
        if kind == "mcp_call" and isinstance(item.get("arguments"), str):
            arguments = item["arguments"] or "{}"
        else:
            arguments = json.dumps(given, ensure_ascii=False)
        name = str(item.get("name") or kind.removesuffix("_call"))
        call = {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}
        if kind.startswith(("web_search", "image_generation")) or results:
            shown = {k: item[k] for k in results if item.get(k) is not None}
            return [call, _output(id, next(iter(shown.values()), "") if len(shown) == 1 else shown or "")]
        return [call]
    if kind in ("tool_search_output", "program_output") or kind.endswith("_call_output") and kind not in (
        "function_call_output", "custom_tool_call_output"
    ):  # fmt: skip
        return [_output(id, item.get("output", item.get("tools", item.get("result", ""))))]
    return None


def _output(id: Any, output: Any) -> Body:
    if isinstance(output, dict) and output.get("type") == "computer_screenshot":
        output = [{"type": "input_image", "image_url": "image:"}]
    elif not isinstance(output, str):
        output = plain(output)
    return {"type": "function_call_output", "call_id": id, "output": output}
