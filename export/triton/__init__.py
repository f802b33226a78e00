"""A model repository for NVIDIA's Triton Inference Server, from a bundle.

config.py      what a config.pbtxt says           scoring.py      embeddings to scores, as a graph
towers.py      which graph or engine serves       repository.py   all of it in one call, `write_repository`
"""
