"""The demo: every layer of fs3 at work on real input, with a storage daemon and a trainer killed on the way.

`python -m fs3_trainer.demo` (what `make demo` runs) types the commands a user would type, checks what they did, and
ends with a report on the terminal and as one HTML page. The stages are data (`stages/`), executed by a small loop
(`runner.py`).
"""
