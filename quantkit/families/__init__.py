"""The families quantkit reads, as a table."""

from quantkit.families.cohere import COHERE
from quantkit.families.cohere2 import COHERE2
from quantkit.families.gemma import GEMMA
from quantkit.families.gemma2 import GEMMA2
from quantkit.families.gemma3 import GEMMA3
from quantkit.families.glm import GLM
from quantkit.families.glm4 import GLM4
from quantkit.families.granite import GRANITE
from quantkit.families.llama import LLAMA
from quantkit.families.mistral import MISTRAL
from quantkit.families.olmo import OLMO
from quantkit.families.olmo2 import OLMO2
from quantkit.families.phi3 import PHI3
from quantkit.families.qwen2 import QWEN2
from quantkit.families.qwen3 import QWEN3
from quantkit.families.smollm3 import SMOLLM3
from quantkit.families.starcoder2 import STARCODER2
from quantkit.families.xglm import XGLM
from quantkit.families.xverse import XVERSE

FAMILIES = (
    LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA, GEMMA2, GEMMA3, GLM, GLM4, OLMO, OLMO2, GRANITE, SMOLLM3,
    COHERE, COHERE2, STARCODER2, XGLM, XVERSE,
)  # fmt: skip
