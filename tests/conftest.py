"""What holds for every test."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as quantkit.cli.main does; read when torch is imported
