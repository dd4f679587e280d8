"""The network: word vector, word shape and spelling, an LSTM in each direction, tags.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       K  tags
    V  rows of the table          D  width of a row              H  units of one direction

The idea: an LSTM that reads left to right never sees the padding at the right before a real token, so padding is
harmless; the other direction reads each sentence turned round within its own length. That equals packed sequences, and
runs two to three times as fast on a CPU, where packed ones miss the fused kernel.

Dropout draws one mask for a sentence and keeps it for all its tokens: what is hidden stays hidden, so that the LSTM
cannot take it from the neighbour (Gal and Ghahramani, 2016). Dropout of the recurrent state zeroes weights instead,
once for all steps, so that the fused kernel still serves (Merity, Keskar and Socher, 2018).

From what the network read to tags: a score for each tag, then the tags one by one or as a chain.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       K  tags
    W  width of what is read for each token
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frostline.tagger.data.batches import NO_TAG
from frostline.tagger.data.vocabulary import PADDING, SHAPES
from frostline.tagger.network import packed_lstm as packed
from frostline.tagger.network.char_cnn import Spelling
from frostline.tagger.network.crf import CRF


class LSTMTagger(nn.Module):
    """Scores of each tag for each token, and the best tags.

    Args:
        table: Word vectors to start from, float32, shape (V, D); row 0 is the padding. Used, not copied.
        tags: K names in the BIO scheme.
        hidden: H.
        shape_width: Width of the vector of a token's shape.
        dropout: Share of the inputs and outputs of the LSTM that is zeroed in training, 0 to 1.
        recurrent_dropout: Share of the LSTM's weights from state to state that is zeroed in training, 0 to 1.
        chain: Judge the tags of a sentence as a chain (see `CRF`), or each token's alone.
        characters: Filters over the bytes of a token (see `Spelling`); 0: none.
    """

    def __init__(
        self,
        table: Tensor,
        tags: Sequence[str],
        hidden: int,
        shape_width: int,
        dropout: float,
        recurrent_dropout: float = 0.0,
        chain: bool = True,
        characters: int = 0,
    ) -> None:
        super().__init__()
        rows, dimension = table.shape
        width = dimension + shape_width + characters
        self.embed = nn.Embedding(rows, dimension, padding_idx=PADDING, _weight=table)
        self.shape = nn.Embedding(SHAPES, shape_width, padding_idx=PADDING, device=table.device)
        self.spelling = Spelling(characters, device=table.device) if characters else None
        self.dropout = KeptDropout(dropout)
        self.recurrent_dropout = recurrent_dropout
        self.forwards = nn.LSTM(width, hidden, batch_first=True, device=table.device)
        self.backwards = nn.LSTM(width, hidden, batch_first=True, device=table.device)
        self.head = Head(2 * hidden, tags, chain, device=table.device)

    def forward(self, rows: Tensor, shapes: Tensor, lengths: Tensor, spellings: Tensor | None = None) -> Tensor:
        """Return the scores, shape (B, T, K). Args: as for `read`."""
        scores: Tensor = self.head(self.read(rows, shapes, lengths, spellings))
        return scores

    def read(self, rows: Tensor, shapes: Tensor, lengths: Tensor, spellings: Tensor | None = None) -> Tensor:
        """Return what the network makes of each token, shape (B, T, 2 H): what its head, or another, judges by.

        Args:
            rows: Row of each token, int64, shape (B, T), 0 behind the end.
            shapes: Shape of each token, int64, shape (B, T), 0 behind the end.
            lengths: Tokens of each sentence, int64, shape (B,).
            spellings: Bytes of each token as `Spelling` reads them, uint8, shape (B, T, S). Only with characters.

        Raises:
            ValueError: The network reads characters, and there are no spellings.
        """
        features = [self.embed(rows), self.shape(shapes)]
        if self.spelling is not None:
            if spellings is None:
                raise ValueError("spellings: None, where the network reads characters. Pass the bytes of each token.")
            features.append(self.spelling(spellings))
        inputs = self.dropout(torch.cat(features, dim=-1))  # (B, T, D + shape + characters)
        turn = _turn_round(lengths, rows.shape[1])  # (B T)
        ahead = self._run(self.forwards, inputs)
        back = self._run(self.backwards, _taken(inputs, turn))
        both: Tensor = self.dropout(torch.cat([ahead, _taken(back, turn)], dim=-1))
        return both

    def _run(self, lstm: nn.LSTM, inputs: Tensor) -> Tensor:
        """Return the states, shape (B, T, H); in training some weights from state to state are zeroed for all steps."""
        if not self.training or not self.recurrent_dropout:
            return packed.states(lstm, inputs)
        into, from_state, *biases = lstm.all_weights[0]
        weights = [into, from_state * _mask(from_state, from_state.shape, self.recurrent_dropout), *biases]
        zeros = inputs.new_zeros(1, len(inputs), lstm.hidden_size)
        states, _, _ = torch.lstm(inputs, (zeros, zeros), weights, True, 1, 0.0, True, False, True)
        return states

    @torch.no_grad()
    def use_one_bias(self, forget: float) -> list[str]:
        """Give the LSTM the biases of TensorFlow's: 0, `forget` on the forget gate; return the names of the second.

        torch adds two biases where TensorFlow has one: the second is 0, and has to be kept from learning.
        """
        for lstm in (self.forwards, self.backwards):
            _, _, first, second = lstm.all_weights[0]
            second.zero_()
            first.zero_()[lstm.hidden_size : 2 * lstm.hidden_size] = forget  # gates stand as i, f, g, o
        return ["forwards.bias_hh_l0", "backwards.bias_hh_l0"]


class KeptDropout(nn.Module):
    """Zero a share of the features of each sentence, the same ones for all its tokens; the rest grows to make up.

    Args:
        share: Chance of a feature to be zeroed, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        """Return `features`, shape (B, T, any), under a mask of shape (B, 1, any) in training, unchanged otherwise."""
        if not self.training or not self.share:
            return features
        return features * _mask(features, (len(features), 1, features.shape[2]), self.share)


def _mask(like: Tensor, shape: Sequence[int], share: float) -> Tensor:
    """Draw 0 for a share of the places and what makes up for it elsewhere; on the CPU, whatever the device."""
    return nn.functional.dropout(like.new_ones(shape, device="cpu"), share).to(like.device)


def _turn_round(lengths: Tensor, longest: int) -> Tensor:
    """Return, for each place of a batch laid end to end, the place it changes with, int64, shape (B T).

    Inside a sentence that is length - 1 - place; what stands behind one stays.
    """
    places = torch.arange(longest, device=lengths.device)
    turned = lengths[:, None] - 1 - places  # (B, T)
    first = torch.arange(len(lengths), device=lengths.device)[:, None] * longest
    return (first + torch.where(turned >= 0, turned, places)).flatten()


def _taken(features: Tensor, places: Tensor) -> Tensor:
    return features.flatten(0, 1).index_select(0, places).view_as(features)


class Head(nn.Module):
    """One tag set: its scores, its loss and its best tags.

    Args:
        width: W.
        tags: K names in the BIO scheme.
        chain: Judge the tags of a sentence as a chain (see `CRF`), or each token's alone.
        device: Where the weights of the scores are.

    Example:
        >>> head = Head(2, ["O", "B-a", "I-a"], chain=True)
        >>> head.tags(torch.zeros(1, 4, 2), torch.tensor([3])).shape
        torch.Size([1, 4])
    """

    def __init__(self, width: int, tags: Sequence[str], chain: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(tags), device=device)
        self.crf = CRF(tags) if chain else None

    def forward(self, read: Tensor) -> Tensor:
        """Return the score of each tag for each token, shape (B, T, K), of what was read, shape (B, T, W)."""
        scores: Tensor = self.linear(read)
        return scores

    def loss(self, read: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return the negative log-likelihood of each sentence's tags, shape (B,), 0 for a sentence without a token.

        Args:
            read: What was read for each token, shape (B, T, W).
            tags: The right tags, int64, shape (B, T), NO_TAG behind the end.
            lengths: Tokens of each sentence, int64, shape (B,), 0 to T.
        """
        scores = self(read).float()  # under autocast they are bfloat16, too coarse for sums over chains
        if self.crf is not None:
            return self.crf.loss(scores, tags, lengths)
        each = nn.functional.cross_entropy(scores.transpose(1, 2), tags, reduction="none")  # (B, T), 0 under NO_TAG
        return each.sum(dim=1)

    def tags(self, read: Tensor, lengths: Tensor) -> Tensor:
        """Return the best tags of each sentence, int64, shape (B, T); anything behind its end."""
        scores = self(read)
        return scores.argmax(dim=-1) if self.crf is None else self.crf.decode(scores, lengths)


def shares(tags: Tensor, by_sentence: bool) -> Tensor:
    """Return what the loss of each sentence counts in the mean of a batch, shape (B,), 0 without a token.

    Args:
        tags: The right tags, int64, shape (B, T), NO_TAG where there is no token.
        by_sentence: Mean over sentences of each one's mean over its tokens, or mean over all tokens.

    Example:
        >>> tags = torch.tensor([[0, 1, 2], [0, NO_TAG, NO_TAG]])
        >>> shares(tags, by_sentence=False), shares(tags, by_sentence=True)
        (tensor([0.2500, 0.2500]), tensor([0.1667, 0.5000]))
    """
    counts = (tags != NO_TAG).sum(dim=1)  # (B,)
    each = len(tags) * counts if by_sentence else counts.sum().expand_as(counts)
    return torch.where(counts > 0, 1 / each.clamp(min=1), 0)
