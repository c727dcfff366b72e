"""The PyTorch tab: `from d2lbert import torch as d2l`."""

from __future__ import annotations

from backends.torch import BACKEND, Module
from d2lbert import bert

num_gpus = BACKEND.num_gpus
try_gpu = BACKEND.try_gpu
try_all_gpus = BACKEND.try_all_gpus


class DotProductAttention(bert.DotProductAttention, Module):
    pass


class MultiHeadAttention(bert.MultiHeadAttention, Module):
    Attention = DotProductAttention


class PositionWiseFFN(bert.PositionWiseFFN, Module):
    pass


class AddNorm(bert.AddNorm, Module):
    pass


class TransformerEncoderBlock(bert.TransformerEncoderBlock, Module):
    Attention = MultiHeadAttention
    FFN = PositionWiseFFN
    AddNorm = AddNorm


class BERTEncoder(bert.BERTEncoder, Module):
    Block = TransformerEncoderBlock


class MaskLM(bert.MaskLM, Module):
    pass


class NextSentencePred(bert.NextSentencePred, Module):
    pass


class BERTModel(bert.BERTModel, Module):
    Encoder = BERTEncoder
    MaskLM = MaskLM
    NextSentencePred = NextSentencePred
