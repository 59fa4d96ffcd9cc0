"""The prefix: one BOS, the generation prompt, nothing lost of the question."""

import pytest

from w2sr.errors import UserError
from w2sr.prompting import PromptStyle, messages_of, render_prefix, template_hash

TEMPLATE = "{{ '<s>' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


class CharTokenizer:
    """A tokenizer of characters that renders a real Jinja chat template."""

    name_or_path = "char"
    bos_token = "<s>"

    def __init__(self, chat_template: str | None = TEMPLATE) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        import jinja2

        assert not tokenize
        assert self.chat_template is not None
        return jinja2.Template(self.chat_template).render(messages=messages, add_generation_prompt=add_generation_prompt)

    def __call__(self, texts: list[str], add_special_tokens: bool, **_: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(char) for char in text] for text in texts]}


def test_a_chat_prefix_holds_system_question_generation_prompt_and_assistant_prefix() -> None:
    style = PromptStyle(system="Think.", user="Q: {question}", assistant_prefix="<think>")
    prefix = render_prefix(CharTokenizer(), style, "2 + 2?")
    assert prefix.text == "<s>[system]Think.[user]Q: 2 + 2?[assistant]<think>"
    assert list(prefix.ids) == [ord(char) for char in prefix.text]


def test_braces_and_boxed_in_a_question_stay_as_they_are() -> None:
    style = PromptStyle(user="{question} Put it in \\boxed{}.")
    assert messages_of(style, "What is {x}?") == [{"role": "user", "content": "What is {x}? Put it in \\boxed{}."}]


def test_a_plain_prefix_has_one_bos() -> None:
    assert render_prefix(CharTokenizer(), PromptStyle(format="plain", user="Q: {question}\nA:"), "1?").text == "<s>Q: 1?\nA:"
    assert render_prefix(CharTokenizer(), PromptStyle(format="plain", user="<s>{question}"), "1?").text == "<s>1?"


def test_a_system_message_without_chat_is_refused() -> None:
    with pytest.raises(UserError, match="needs format: chat"):
        render_prefix(CharTokenizer(), PromptStyle(format="plain", system="Think."), "1?")


def test_a_tokenizer_without_chat_template_is_named() -> None:
    with pytest.raises(UserError, match="tokenizer char has no chat template; set format: plain"):
        render_prefix(CharTokenizer(None), PromptStyle(), "1?")


def test_the_template_hash_sees_style_and_template() -> None:
    plain, chat = PromptStyle(format="plain"), PromptStyle()
    hashes = {
        template_hash(CharTokenizer(), chat),
        template_hash(CharTokenizer(), PromptStyle(system="x")),
        template_hash(CharTokenizer("{{ 1 }}"), chat),
    }
    assert len(hashes) == 3
    assert template_hash(CharTokenizer(), plain) == template_hash(CharTokenizer("{{ 1 }}"), plain)
