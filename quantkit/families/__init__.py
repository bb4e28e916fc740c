"""The families quantkit reads, as a table."""

from quantkit.families.llama import LLAMA
from quantkit.families.mistral import MISTRAL
from quantkit.families.phi3 import PHI3
from quantkit.families.qwen2 import QWEN2
from quantkit.families.qwen3 import QWEN3
from quantkit.families.xverse import XVERSE

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, XVERSE)
