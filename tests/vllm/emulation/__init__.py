"""What vLLM does on a GPU, on its CPU build: model runner V2, CUDA graphs, async scheduling.

A process asks for it by an environment variable (`settings.environment`). `site/sitecustomize.py`,
which that environment puts on the path, finds it in every process that imports vLLM, workers
included, and arms what is asked for; nothing of vLLM is changed on disk.

Kernels of Triton run in its interpreter (`interpreter`); CUDA graphs are tapes of the operators
that a forward ran (`tape`), which vLLM's own managers of graphs record and replay (`graphs`).
"""
