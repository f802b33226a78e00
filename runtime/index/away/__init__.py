"""The way off the device: files that other tools read, the same calls on Qdrant, bulk embedding on many machines.

parquet.py  pandas, LanceDB, Milvus, DuckDB, Hugging Face datasets
fbin.py     faiss, DiskANN, cuVS and whatever reads the big-ann format
qdrant.py   `Index`'s calls on a Qdrant collection: in this process, in a folder or on a server
ray_build.py  many machines embed, one writer adds
"""
