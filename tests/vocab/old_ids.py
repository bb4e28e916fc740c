"""Run by the interpreter of `.venv-peers-tokenizers`: ids and texts back, as an old tokenizers makes them.

old_ids.py TOKENIZER_JSON < texts.json > {"version": ..., "rows": [[ids, decoded], ...]}
"""

import json
import sys

import tokenizers

tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
rows = [[encoded.ids, tokenizer.decode(encoded.ids)] for encoded in tokenizer.encode_batch(json.load(sys.stdin))]
json.dump({"version": tokenizers.__version__, "rows": rows}, sys.stdout)
