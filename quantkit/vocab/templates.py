"""Chat templates of checkpoints that were published without one, by exact repository name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja and the repositories that it belongs to."""

    name: str
    repositories: tuple[str, ...]
    text: str


# USER and ASSISTANT on one line, as FastChat's vicuna_v1.1 and the card of Xwin-LM have it.
VICUNA = ChatTemplate(
    "Vicuna 1.1",
    (
        "Xwin-LM/Xwin-LM-7B-V0.1",
        "Xwin-LM/Xwin-LM-13B-V0.1",
        "Xwin-LM/Xwin-LM-70B-V0.1",
        "Xwin-LM/Xwin-LM-7B-V0.2",
        "Xwin-LM/Xwin-LM-13B-V0.2",
    ),
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    "{%- set system = 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' -%}"
    "{%- set turns = messages -%}"
    "{%- endif -%}"
    "{{- bos_token + system + ' ' -}}"
    "{%- for message in turns -%}"
    "{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'ASSISTANT: ' + message['content'] + eos_token -}}"
    "{%- else -%}{{- raise_exception('expected user and assistant, found ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}",
)

# As the card of xgen-7b-8k-inst writes it; there is no BOS, and the model ends an answer with <|endoftext|>.
XGEN = ChatTemplate(
    "XGen",
    ("Salesforce/xgen-7b-8k-inst",),
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    "{%- set system = 'A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human\\'s questions.' -%}"
    "{%- set turns = messages -%}"
    "{%- endif -%}"
    "{{- system + '\\n\\n' -}}"
    "{%- for message in turns -%}"
    "{%- if message['role'] == 'user' -%}{{- '### Human: ' + message['content'] + '\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '### Assistant: ' + message['content'] + '\\n' -}}"
    "{%- else -%}{{- raise_exception('expected user and assistant, found ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:' -}}{%- endif -%}",
)

# As `_build_chat_input` of its remote code puts a chat together: no BOS, EOS after each answer.
XVERSE = ChatTemplate(
    "XVERSE",
    (
        "xverse/XVERSE-7B-Chat",
        "xverse/XVERSE-13B-Chat",
        "xverse/XVERSE-13B-2-Chat",
        "xverse/XVERSE-65B-Chat",
    ),
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' and loop.first -%}{{- message['content'] + '\\n\\n' -}}"
    "{%- elif message['role'] == 'user' -%}{{- 'Human: ' + message['content'] + '\\n\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'Assistant: ' + message['content'] + eos_token -}}"
    "{%- else -%}{{- raise_exception('expected user and assistant, found ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant: ' -}}{%- endif -%}",
)

TEMPLATES = (VICUNA, XGEN, XVERSE)
BY_REPOSITORY = {name: template for template in TEMPLATES for name in template.repositories}
BY_FOLDER = {name.rpartition("/")[2]: template for name, template in BY_REPOSITORY.items()}


def template_for(repository: str | None, folder: str) -> ChatTemplate | None:
    """The template of a repository, or of a local folder that has the repository's last name exactly.

    Args:
        repository: organisation/name; None for a local folder, which then goes by its name.
        folder: the folder's name.
    """
    return BY_FOLDER.get(folder) if repository is None else BY_REPOSITORY.get(repository)
