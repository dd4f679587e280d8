"""The network: word vectors, word shapes and characters, an LSTM in each direction, and a head that scores tags.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       K  tags
    V  rows of the table          D  width of a row              H  units of one direction
    S  bytes of a token           W  width of a head's input, 2 H in the tagger

The idea: an LSTM that reads left to right never sees the padding on the right before a real token, so padding is
harmless; the other direction reads each sentence reversed within its own length. That equals packed sequences, and
runs two to three times as fast on a CPU, where packed sequences miss the fused kernel.

Dropout draws one mask for a sentence and uses it for all its tokens: a feature is zeroed in all of them, so the LSTM
cannot take it from a neighbour (Gal and Ghahramani, 2016). Recurrent dropout zeroes weights, once for all steps, so
that the fused kernel can still be used (Merity, Keskar and Socher, 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frostline.tagger.data.batches import NO_TAG
from frostline.tagger.data.spelling import WORD_SHAPES
from frostline.tagger.data.vocabulary import PADDING
from frostline.tagger.network import packed_lstm
from frostline.tagger.network.char_cnn import CharCNN
from frostline.tagger.network.crf import CRF


class LSTMTagger(nn.Module):
    """Features of each token from a bidirectional LSTM, and a head that scores its tags.

    Args:
        table: Word vectors to start from, float32, shape (V, D); row 0 is the padding. Used, not copied.
        tags: K names in the BIO scheme.
        hidden: H.
        shape_width: Width of the embedding of a token's word shape.
        dropout: Fractions of the inputs and of the outputs of the LSTM that are zeroed in training, 0 to 1; one number
            is both.
        dropout_state: Fraction of the LSTM's recurrent weights that is zeroed in training, 0 to 1.
        crf: Score the tags of a sentence together (see `CRF`), or each token's alone.
        char_filters: Filters over the bytes of a token (see `CharCNN`); 0: none.
    """

    def __init__(
        self,
        table: Tensor,
        tags: Sequence[str],
        hidden: int,
        shape_width: int,
        dropout: float | tuple[float, float],
        dropout_state: float = 0.0,
        crf: bool = True,
        char_filters: int = 0,
    ) -> None:
        super().__init__()
        rows, dimension = table.shape
        width = dimension + shape_width + char_filters
        self.embed = nn.Embedding(rows, dimension, padding_idx=PADDING, _weight=table)
        self.shape = nn.Embedding(WORD_SHAPES, shape_width, padding_idx=PADDING, device=table.device)
        self.char_cnn = CharCNN(char_filters, device=table.device) if char_filters else None
        of_input, of_output = dropout if isinstance(dropout, tuple) else (dropout, dropout)
        self.dropout_input, self.dropout_output = LockedDropout(of_input), LockedDropout(of_output)
        self.dropout_state = dropout_state
        self.forwards = nn.LSTM(width, hidden, batch_first=True, device=table.device)
        self.backwards = nn.LSTM(width, hidden, batch_first=True, device=table.device)
        self.head = Head(2 * hidden, tags, crf, device=table.device)

    def forward(self, rows: Tensor, shapes: Tensor, lengths: Tensor, spellings: Tensor | None = None) -> Tensor:
        """Return the scores, shape (B, T, K). Args: as for `read`."""
        scores: Tensor = self.head(self.read(rows, shapes, lengths, spellings))
        return scores

    def read(self, rows: Tensor, shapes: Tensor, lengths: Tensor, spellings: Tensor | None = None) -> Tensor:
        """Return the features of each token, shape (B, T, 2 H): the input of the network's head, or of another.

        Args:
            rows: Row of each token, int64, shape (B, T), 0 after the end.
            shapes: Word shape of each token, int64, shape (B, T), 0 after the end.
            lengths: Tokens of each sentence, int64, shape (B,).
            spellings: Bytes of each token as `CharCNN` reads them, uint8, shape (B, T, S). Only with `char_filters`.

        Raises:
            ValueError: The network has `char_filters`, and there are no spellings.
        """
        features = [self.embed(rows), self.shape(shapes)]
        if self.char_cnn is not None:
            if spellings is None:
                raise ValueError("spellings: None, but the network reads characters. Pass the bytes of each token.")
            features.append(self.char_cnn(spellings))
        inputs = self.dropout_input(torch.cat(features, dim=-1))  # (B, T, D + shape_width + char_filters)
        reversal = _reversal_index(lengths, rows.shape[1])  # (B T)
        ahead = self._run(self.forwards, inputs)
        back = self._run(self.backwards, _gather(inputs, reversal))
        both: Tensor = self.dropout_output(torch.cat([ahead, _gather(back, reversal)], dim=-1))
        return both

    def _run(self, lstm: nn.LSTM, inputs: Tensor) -> Tensor:
        """Return the states, shape (B, T, H); in training with recurrent dropout, which is the same for all steps."""
        if not self.training or not self.dropout_state:
            return packed_lstm.states(lstm, inputs)
        input_weight, recurrent_weight, *biases = lstm.all_weights[0]
        mask = _dropout_mask(recurrent_weight, recurrent_weight.shape, self.dropout_state)
        zeros = inputs.new_zeros(1, len(inputs), lstm.hidden_size)
        weights = [input_weight, recurrent_weight * mask, *biases]
        states, _, _ = torch.lstm(inputs, (zeros, zeros), weights, True, 1, 0.0, True, False, True)
        return states

    @torch.no_grad()
    def use_single_bias(self, forget: float) -> list[str]:
        """Initialise the LSTM's biases as TensorFlow does: 0, `forget` at the forget gate.

        torch adds two biases where TensorFlow has one, so the second is 0 and must not learn.

        Returns:
            The names of the parameters that must not learn.
        """
        for lstm in (self.forwards, self.backwards):
            _, _, first, second = lstm.all_weights[0]
            second.zero_()
            first.zero_()[lstm.hidden_size : 2 * lstm.hidden_size] = forget  # the order of the gates is i, f, g, o
        return ["forwards.bias_hh_l0", "backwards.bias_hh_l0"]


class LockedDropout(nn.Module):
    """Dropout with one mask for all tokens of a sentence.

    Args:
        p: Probability of a feature to be zeroed, 0 to 1; the others are scaled by 1 / (1 - p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, features: Tensor) -> Tensor:
        """Return `features`, shape (B, T, any), times a mask of shape (B, 1, any) in training, else unchanged."""
        if not self.training or not self.p:
            return features
        return features * _dropout_mask(features, (len(features), 1, features.shape[2]), self.p)


def _dropout_mask(like: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """Return 0 with probability `p`, else 1 / (1 - p); drawn on the CPU, so that every device gets the same mask."""
    return nn.functional.dropout(like.new_ones(shape, device="cpu"), p).to(like.device)


def _reversal_index(lengths: Tensor, longest: int) -> Tensor:
    """Return the index, int64, shape (B T), that reverses each sentence of a flattened batch and leaves its padding."""
    positions = torch.arange(longest, device=lengths.device)
    reversed_ = lengths[:, None] - 1 - positions  # (B, T)
    first = torch.arange(len(lengths), device=lengths.device)[:, None] * longest
    return (first + torch.where(reversed_ >= 0, reversed_, positions)).flatten()


def _gather(features: Tensor, index: Tensor) -> Tensor:
    return features.flatten(0, 1).index_select(0, index).view_as(features)


class Head(nn.Module):
    """One tag set: its scores, its loss and its best tags.

    Args:
        width: W.
        tags: K names in the BIO scheme.
        crf: Score the tags of a sentence together (see `CRF`), or each token's alone.
        device: Where the weights of the scores are.

    Example:
        >>> head = Head(2, ["O", "B-a", "I-a"], crf=True)
        >>> head.tags(torch.zeros(1, 4, 2), torch.tensor([3])).shape
        torch.Size([1, 4])
    """

    def __init__(self, width: int, tags: Sequence[str], crf: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(tags), device=device)
        self.crf = CRF(tags) if crf else None

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each tag for each token, shape (B, T, K), from its features, shape (B, T, W)."""
        scores: Tensor = self.linear(features)
        return scores

    def loss(self, features: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return the negative log-likelihood of each sentence's tags, shape (B,), 0 for an empty sentence.

        Args:
            features: Of each token, shape (B, T, W).
            tags: The right tags, int64, shape (B, T), NO_TAG after the end.
            lengths: Tokens of each sentence, int64, shape (B,), 0 to T.
        """
        scores = self(features).float()  # bfloat16 under autocast is too coarse for the sums of a CRF
        if self.crf is not None:
            return self.crf.loss(scores, tags, lengths)
        losses = nn.functional.cross_entropy(scores.transpose(1, 2), tags, reduction="none")  # (B, T), 0 under NO_TAG
        return losses.sum(dim=1)

    def tags(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the best tags of each sentence, int64, shape (B, T); ignore those after its end."""
        scores = self(features)
        return scores.argmax(dim=-1) if self.crf is None else self.crf.decode(scores, lengths)


def loss_weights(tags: Tensor, by_sentence: bool) -> Tensor:
    """Return the weight of each sentence's loss in the mean of a batch, shape (B,), 0 for an empty sentence.

    Args:
        tags: The right tags, int64, shape (B, T), NO_TAG after the end.
        by_sentence: Mean over sentences of each one's mean over its tokens, or mean over all tokens.

    Example:
        >>> tags = torch.tensor([[0, 1, 2], [0, NO_TAG, NO_TAG]])
        >>> loss_weights(tags, by_sentence=False), loss_weights(tags, by_sentence=True)
        (tensor([0.2500, 0.2500]), tensor([0.1667, 0.5000]))
    """
    counts = (tags != NO_TAG).sum(dim=1)  # (B,)
    divisors = len(tags) * counts if by_sentence else counts.sum().expand_as(counts)
    return torch.where(counts > 0, 1 / divisors.clamp(min=1), 0)
