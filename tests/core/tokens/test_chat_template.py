"""What the assistant says is found in the text of a chat, whatever template the model has."""

import copy
import json
import re
from datetime import date
from functools import cache
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from bergson_core.data.documents import documents_from_dataset, load_documents
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.chat_template import RenderedChat, render_chats, tokenize_chats
from bergson_core.utils import sandbox
from tests import tiny
from tests.core.tokens import chat_templates as templates
from tests.core.tokens.template_runs import run_here

SPECIAL_TOKENS = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(
        "<start_of_turn>",
        "<end_of_turn>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<|end|>",
        "[INST]",
        "[/INST]",
    ),
    *(
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|return|>",
    ),
]


@pytest.fixture(autouse=True)
def without_a_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renders in this process, but for the tests that compare texts with those of transformers."""
    if request.function is not test_the_text_is_that_of_transformers:
        monkeypatch.setattr(sandbox, "run_sandboxed", run_here)


@cache
def trained_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer(tiny.texts(20))
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": SPECIAL_TOKENS}
    )
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return tokenizer


def chat_tokenizer(template: Any) -> PreTrainedTokenizerFast:
    tokenizer = copy.copy(trained_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Returns a chat of the user's and the assistant's turns, which the user begins."""
    roles = ("user", "assistant")
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": roles[k % 2], "content": content} for k, content in enumerate(contents)]


def render(template: Any, chat: Any) -> RenderedChat:
    (rendered,) = render_chats(chat_tokenizer(template), [chat])
    if isinstance(rendered, InvalidInput):
        raise rendered
    return rendered


def write_literally(text: str) -> str:
    """Returns the template that writes this text."""
    return "{{ " + json.dumps(text) + " }}"


def said(template: Any, chat: Any) -> list[str]:
    """Returns what the assistant says in a chat."""
    rendered = render(template, chat)
    return [rendered.text[start:end] for start, end in rendered.spans]


TWO = turns("Where was Ada born?", "In London.", "And Bo?", "In Oslo.")
WITH_SYSTEM = turns("Where was Ada born?", "In London.", "And Bo?", "In Oslo.", system="Be brief.")
SPACES = turns("Hi", "  <b>In London.\n", "And Bo?", " In Oslo. ")
REASONING = turns(
    "Hi", "<think>\nAda, 1815\n</think>\n\n<b>London", "And Bo?", "<think>\nBo\n</think>\n\nOslo"
)

CASES = {
    "chatml": (templates.CHATML, WITH_SYSTEM, ["In London.<|im_end|>", "In Oslo.<|im_end|>"]),
    "smollm2": (templates.SMOLLM2, TWO, ["In London.<|im_end|>", "In Oslo.<|im_end|>"]),
    "llama 3": (templates.LLAMA_3, WITH_SYSTEM, ["In London.<|eot_id|>", "In Oslo.<|eot_id|>"]),
    "llama 3 trims": (templates.LLAMA_3, SPACES, ["<b>In London.<|eot_id|>", "In Oslo.<|eot_id|>"]),
    "llama 2": (templates.LLAMA_2, TWO, ["In London. </s>", "In Oslo. </s>"]),
    "mistral": (templates.MISTRAL, TWO, ["In London.</s>", "In Oslo.</s>"]),
    "mistral v3": (templates.MISTRAL_V3, WITH_SYSTEM, ["In London.</s>", "In Oslo.</s>"]),
    "the system's turn before the last user's": (
        templates.SYSTEM_BEFORE_LAST_USER,
        WITH_SYSTEM,
        ["In London.</s>", "In Oslo.</s>"],
    ),
    "gemma": (templates.GEMMA, TWO, ["In London.<end_of_turn>", "In Oslo.<end_of_turn>"]),
    "gemma 3": (templates.GEMMA_3, WITH_SYSTEM, ["In London.<end_of_turn>", "In Oslo.<end_of_turn>"]),
    "zephyr": (templates.ZEPHYR, WITH_SYSTEM, ["In London.</s>", "In Oslo.</s>"]),
    "phi 3": (templates.PHI_3, WITH_SYSTEM, ["In London.<|end|>", "In Oslo.<|end|>\n</s>"]),
    "qwen 2.5": (templates.QWEN_2_5, TWO, ["In London.<|im_end|>", "In Oslo.<|im_end|>"]),
    "qwen 3": (
        templates.QWEN_3,
        WITH_SYSTEM,
        ["In London.<|im_end|>", "<think>\n\n</think>\n\nIn Oslo.<|im_end|>"],
    ),
    "qwen 3 drops earlier reasoning": (
        templates.QWEN_3,
        REASONING,
        ["<b>London<|im_end|>", "<think>\nBo\n</think>\n\nOslo<|im_end|>"],
    ),
    "qwen 3 opens a reasoning": (
        templates.QWEN_3_THINKING,
        REASONING,
        ["<b>London<|im_end|>", "Bo\n</think>\n\nOslo<|im_end|>"],
    ),
    "deepseek r1": (
        templates.DEEPSEEK_R1,
        REASONING,
        ["\n\n<b>London<｜end▁of▁sentence｜>", "\n\nOslo<｜end▁of▁sentence｜>"],
    ),
    "deepseek r1 and turns like the tag": (
        templates.DEEPSEEK_R1,
        turns("Hi", "<thin", "Hi", "<th>"),
        ["<thin<｜end▁of▁sentence｜>", "<th><｜end▁of▁sentence｜>"],
    ),
    "gpt-oss": (
        templates.GPT_OSS,
        [*TWO[:3], {"role": "assistant", "content": "In Oslo.", "thinking": "Bo?"}],
        [
            "<|channel|>final<|message|>In London.",  # here the template closes it with another token
            "<|channel|>analysis<|message|>Bo?<|end|><|start|>assistant<|channel|>final<|message|>In Oslo.<|return|>",
        ],
    ),
    "vicuna": (templates.VICUNA, WITH_SYSTEM, [" In London.</s>", " In Oslo.</s>"]),
    "no special tokens": (templates.PLAIN, TWO, ["In London.\n", "In Oslo.\n"]),
    "no generation prompt": (templates.NO_GENERATION_PROMPT, TWO, ["In London.</s>", "In Oslo.</s>"]),
    "eos at the end only": (templates.EOS_AT_END_ONLY, TWO, ["In London.\n", "In Oslo.\n</s>"]),
    "the assistant begins": (templates.SMOLLM2, TWO[1:], ["In London.<|im_end|>", "In Oslo.<|im_end|>"]),
    "the assistant begins, where the template needs a first message": (
        templates.QWEN_2_5,
        TWO[1:],
        ["In London.<|im_end|>", "In Oslo.<|im_end|>"],
    ),
    "the user ends": (templates.CHATML, TWO[:3], ["In London.<|im_end|>"]),
    "the assistant speaks twice": (
        templates.CHATML,
        [*TWO[:2], TWO[1]],
        ["In London.<|im_end|>", "In London.<|im_end|>"],
    ),
    "a turn without text": (templates.CHATML, turns("Hi", "", "Hi", "x"), ["<|im_end|>", "x<|im_end|>"]),
    "no turn of the assistant's": (templates.CHATML, TWO[:1], []),
    "a turn that quotes the template": (
        templates.CHATML,
        turns("Hi", "<|im_end|>\n<|im_start|>assistant\n", "Hi", "x"),
        ["<|im_end|>\n<|im_start|>assistant\n<|im_end|>", "x<|im_end|>"],
    ),
    "the same words in all turns": (templates.QWEN_3, turns(*["Hi"] * 4), None),
}


@pytest.mark.parametrize(("template", "chat", "expected"), CASES.values(), ids=CASES.keys())
def test_the_assistants_turns_are_found_without_marks(template, chat, expected):
    if expected is None:
        expected = ["Hi<|im_end|>", "<think>\n\n</think>\n\nHi<|im_end|>"]
    assert said(template, chat) == expected


@pytest.mark.parametrize(("template", "chat"), [case[:2] for case in CASES.values()], ids=CASES.keys())
def test_the_text_is_that_of_transformers(template, chat):
    tokenizer = chat_tokenizer(template)
    assert render(template, chat).text == tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(("template", "chat"), [case[:2] for case in CASES.values()], ids=CASES.keys())
def test_the_tokens_of_a_template_without_marks_are_those_of_one_with_marks_around_its_turns(template, chat):
    tokenizer, rendered = chat_tokenizer(template), render(template, chat)
    pieces, position = [], 0
    for start, end in rendered.spans:
        said = write_literally(rendered.text[start:end])
        pieces += [
            write_literally(rendered.text[position:start]),
            f"{{% generation %}}{said}{{% endgeneration %}}",
        ]
        position = end
    pieces += [write_literally(rendered.text[position:]), "{% generation %}{% endgeneration %}"]
    marked = chat_tokenizer("".join(pieces))
    expected: Any = marked.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    (tokens,) = tokenize_chats(tokenizer, [chat])
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.labels.tolist() == [False, *map(bool, expected["assistant_masks"][1:])]


ALWAYS_A_HEADER = {
    "chatml": templates.CHATML,
    "smollm2": templates.SMOLLM2,
    "llama 3": templates.LLAMA_3,
    "zephyr": templates.ZEPHYR,
    "phi 3": templates.PHI_3.replace("{% else %}{{ eos_token }}", ""),
    "gemma": templates.GEMMA,
    "qwen 2.5": templates.QWEN_2_5,
    "qwen 3": templates.QWEN_3,
    "qwen 3 opens a reasoning": templates.QWEN_3_THINKING,
    "deepseek r1": templates.DEEPSEEK_R1,
    "vicuna": templates.VICUNA,
    "no special tokens": templates.PLAIN,
    "begins with an EOS": "{{ eos_token }}" + templates.VICUNA,
    "no closing token": (
        "{% for m in messages %}{{ '<|header|>' + m.role + '\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|header|>assistant\n' }}{% endif %}"
    ),
}
"""Templates whose generation prompt is made one that is always there."""


def write_always(template: str) -> str:
    """Returns a template that writes its generation prompt whether it is asked for one or not."""
    written, count = re.subn(r"(if (?:loop\.last and )?)add_generation_prompt\b", r"\1true", template)
    assert count == 1
    return written


HEADER_CHATS = {
    "one turn": turns("Where was Ada born?", "In London."),
    "two turns": TWO,
    "the user ends": TWO[:3],
    "the assistant begins": TWO[1:],
    "the assistant speaks twice": [*TWO[:2], TWO[1]],
    "a system's turn": WITH_SYSTEM,
    "a turn without text": turns("Hi", "", "Hi", "x"),
    "the same words in all turns": turns(*["Hi"] * 4),
    "a turn that quotes headers": turns(
        "Hi", "<|im_end|>\n<|im_start|>assistant\nASSISTANT: ### assistant:\n", "Hi", "x"
    ),
}


@pytest.mark.parametrize("comment", ["", "{# no add_generation_prompt #}"], ids=["", "named"])
@pytest.mark.parametrize("template", ALWAYS_A_HEADER.values(), ids=ALWAYS_A_HEADER.keys())
def test_a_header_that_a_template_always_writes_at_the_end_is_said_by_nobody(template, comment):
    chats = list(HEADER_CHATS.values())
    found, expected = (
        [
            str(chat)
            if isinstance(chat, InvalidInput)
            else [chat.text[start:end] for start, end in chat.spans]
            for chat in render_chats(chat_tokenizer(form), chats)
        ]
        for form in (write_always(template) + comment, template)
    )
    assert found == expected


@pytest.mark.parametrize("chat", [TWO[:2], TWO, WITH_SYSTEM])
@pytest.mark.parametrize("header", ["<|user|>\n", "### user:\n"])
def test_the_users_header_at_the_end_of_every_chat_is_said_by_nobody(header, chat):
    opening, closing = header.split("user")
    template = (
        f"{{% for m in messages %}}{{{{ {opening!r} + m.role + {closing!r} + m.content + '</s>\n' }}}}{{% endfor %}}"
        f"{{{{ {header!r} }}}}"
    )
    assert said(template, chat) == ["In London.</s>", "In Oslo.</s>"][: len(chat) // 2]


AMBIGUOUS = {
    "the last message only": ("{{ messages[-1].content }}", TWO),
    "contents in capitals, before what was said": (
        "{% for m in messages|reverse %}{{ m.content|upper|replace('A', '') }}{% endfor %}",
        TWO,
    ),
}


@pytest.mark.parametrize(("template", "chat"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_turns_that_cannot_be_told_from_the_rest_are_refused_with_what_to_do(template, chat):
    with pytest.raises(InvalidInput, match=re.escape("{% generation %}")):
        said(template, chat)


def test_a_chat_that_names_the_roles_otherwise_is_refused():
    with pytest.raises(InvalidInput, match="'gpt' is not known"):
        said(templates.CHATML, [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Ho"}])


def test_an_error_names_the_chat():
    with pytest.raises(InvalidInput, match=r"chat 1: .*must alternate"):
        tokenize_chats(chat_tokenizer(templates.GEMMA), [TWO, [*TWO, TWO[1]]])


# Named templates


def test_the_template_named_default_is_taken_and_a_single_one_whatever_its_name():
    for named in ({"default": templates.CHATML, "rag": templates.LLAMA_3}, {"tool_use": templates.CHATML}):
        assert said(named, TWO) == ["In London.<|im_end|>", "In Oslo.<|im_end|>"]


def test_several_templates_without_a_default_are_refused_by_name():
    with pytest.raises(InvalidInput, match="tool_use, rag; expected one named default"):
        said({"tool_use": templates.CHATML, "rag": templates.CHATML}, TWO)


# The date


def test_a_template_is_told_the_date_that_it_is_given():
    tokenizer = chat_tokenizer(templates.DATED)
    (rendered,) = render_chats(tokenizer, [TWO], date(2026, 3, 1))
    assert isinstance(rendered, RenderedChat)
    assert "Today Date: 01 Mar 2026<" in rendered.text
    assert said(templates.DATED, TWO) == ["In London.<|im_end|>", "In Oslo.<|im_end|>"]


# Tool calls


def call(question: str, name: str, arguments: Any, **fields: Any) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": arguments}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function, **fields}]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "21 degrees."},
    ]


CALLS = [
    call("weather?", "weather", {"city": "Rome", "days": [1, None, 3]}),
    call("time?", "clock", {"zone": "CET", "form": {"hours": 24}}),
    call("nothing?", "ping", {}, id="a1"),
    turns("hi", "ho"),
]
"""Chats that all have other keys."""


@pytest.mark.parametrize("form", ["jsonl", "jsonl of text", "parquet", "arrow", "inline", "text"])
def test_tool_calls_are_rendered_the_same_from_every_kind_of_file(tmp_path, form):
    rows = [{"chat": chat, "n": number} for number, chat in enumerate(CALLS)]
    as_text = [row | {"chat": json.dumps(row["chat"])} for row in rows]
    path = tmp_path / f"chats.{form.split()[0]}"
    source: dict[str, Any] = {"dataset": {"path": str(path)}}
    if form.startswith("jsonl"):
        written = as_text if form.endswith("text") else rows
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
    elif form in ("parquet", "arrow"):
        dataset = Dataset.from_list(rows)
        (dataset.to_parquet if form == "parquet" else dataset.save_to_disk)(str(path))
    else:
        source = {"documents": as_text if form == "text" else rows}
    spec = BuildSpec(model="x", columns=ColumnsSpec(messages="chat"), **source)
    records = load_documents(spec).read(range(4))
    texts = [render(templates.QWEN_2_5, record.messages).text for record in records]
    assert texts == [render(templates.QWEN_2_5, chat).text for chat in CALLS]
    assert '"arguments": {"city": "Rome", "days": [1, null, 3]}}\n</tool_call><|im_end|>' in texts[0]
    assert [json.loads(record.prompt) for record in records] == CALLS


def test_a_null_means_a_missing_field_at_every_depth():
    with_nulls = call("weather?", "weather", {"city": "Rome", "unit": None}, id=None)
    assert said(templates.QWEN_3, with_nulls) == said(
        templates.QWEN_3, call("weather?", "weather", {"city": "Rome"})
    )


@pytest.mark.parametrize("arguments", [{"city": "Röme"}, '{"city": "Röme"}'], ids=["object", "text"])
@pytest.mark.parametrize(
    "template",
    [templates.QWEN_2_5, templates.QWEN_3, templates.DEEPSEEK_V3_TOOLS],
    ids=["tojson", "both", "text"],
)
def test_arguments_may_be_an_object_or_json_text_whichever_the_template_takes(template, arguments):
    first, second = said(template, call("weather?", "weather", arguments))
    assert '{"city": "Röme"}' in first
    assert "\\" not in first
    assert "21 degrees." in second


def test_arguments_that_are_no_json_stay_as_they_are():
    first, _ = said(templates.QWEN_2_5, call("weather?", "weather", 'city "Rome"'))
    assert json.dumps('city "Rome"') in first


IGNORES_CALLS = {
    "no tool calls": templates.PLAIN.replace("m.content", "(m.content or '')"),
    "no tool calls, and marks": (
        "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
    ),
    "those of the last message only": (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}"
        "{% if loop.last %}{{ m.tool_calls }}{% endif %}\n{% endfor %}"
    ),
}


@pytest.mark.parametrize("template", IGNORES_CALLS.values(), ids=IGNORES_CALLS.keys())
@pytest.mark.parametrize("fields", [{}, {"content": ""}, {"content": "Let me see."}], ids=str)
def test_tool_calls_that_the_template_does_not_render_are_refused(template, fields):
    chat = call("weather?", "weather", {"city": "Rome"})
    chat[1] |= fields
    with pytest.raises(InvalidInput, match="does not render the tool_calls of message 1"):
        said(template, chat)


@pytest.mark.parametrize("calls", [[], None], ids=str)
def test_a_message_without_tool_calls_may_say_so(calls):
    chat = [TWO[0], TWO[1] | {"tool_calls": calls}]
    assert said(templates.CHATML, chat) == ["In London.<|im_end|>"]


def test_of_several_tool_calls_each_has_to_be_rendered():
    first_only = (
        "{% set ns = namespace(seen=false) %}{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}"
        "{% if m.tool_calls and not ns.seen %}{{ m.tool_calls }}{% set ns.seen = true %}{% endif %}</s>{% endfor %}"
    )
    chat = [*call("weather?", "weather", {}), *call("time?", "clock", {})]
    with pytest.raises(InvalidInput, match="tool_calls of message 5"):
        said(first_only, chat)


# Contents


PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "Where was "}, {"type": "text", "text": "Ada born?"}],
    },
    {"role": "assistant", "content": "In London."},
]


@pytest.mark.parametrize(
    "template",
    [
        templates.CHATML,
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        templates.GEMMA_3,
    ],
    ids=["refuses lists", "writes lists", "takes lists"],
)
def test_contents_may_be_text_and_lists_of_parts(template):
    expected = render(template, turns("Where was Ada born?", "In London.")).text
    assert render(template, PARTS).text.replace("Where wasAda", "Where was Ada") == expected
    documents = load_documents(
        BuildSpec(
            model="x",
            documents=({"chat": PARTS}, {"chat": TWO}),
            columns=ColumnsSpec(messages="chat"),
        )
    )
    assert [record.messages for record in documents.read(range(2))] == [PARTS, TWO]


@pytest.mark.parametrize("content", [[], [{"type": "text", "text": ""}], [""]], ids=str)
@pytest.mark.parametrize(
    "template",
    [
        templates.CHATML,
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        templates.GEMMA_3,
    ],
    ids=["refuses lists", "writes lists", "takes lists"],
)
def test_a_list_without_text_is_a_content_without_text(template, content):
    chat = [{"role": "user", "content": content}, TWO[1], {"role": "user", "content": content}]
    assert render(template, chat) == render(template, turns("", "In London.", ""))


def test_parts_that_are_no_text_are_refused_where_the_template_does_not_read_them():
    chat = [{"role": "user", "content": [{"type": "image", "url": "x"}]}, TWO[1]]
    with pytest.raises(InvalidInput, match="a list of parts"):
        said("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", chat)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "user", "content": 3}], "message 0: expected a content that is text"),
        ([TWO[0], {"role": None, "content": "x"}], "message 1: expected a role"),
        ([TWO[0], "x"], "message 1: expected a role"),
        ('{"role": "user"}', "is not a chat"),
        ("not JSON", "is not a chat"),
        ("[]", "is not a chat"),
    ],
    ids=str,
)
def test_a_chat_that_cannot_be_read_is_refused_and_its_row_named(chat, message):
    text = chat if isinstance(chat, str) else json.dumps(chat)
    documents = documents_from_dataset(Dataset.from_list([{"chat": text}]), ColumnsSpec(messages="chat"))
    with pytest.raises(InvalidInput, match=f"row 0 of column 'chat'.*{message}"):
        documents.read(range(1))
