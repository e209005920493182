"""Harmful rows among benign ones that look like them: the toxicity task of DATE-LM, at the size of a CPU.

DATE-LM (Jiao et al., arXiv 2507.09424) fine-tunes a model on 10,000 benign chats with fewer than 100 unsafe ones among
them. A method gives every row a score, the mean of its influence on some unsafe chats that are held out, and is
measured by the area under the curve of precision over recall (AUPRC). In the heterogeneous setting there are also chats
that look unsafe and are safe, because the answer refuses: XSTest-response-Het has 66 unsafe rows and 121 of these, and
ten held-out chats. The homogeneous setting leaves them out.

`python -m benchmarks.toxicity` measures the same on chats that harm nobody (`secret_chats`).
"""
