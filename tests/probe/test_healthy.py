"""Healthy models raise no alarm, and a real step moves what `explain` says learns.

Much in them looks like a fault: detached targets, straight-through estimators, frozen teachers, hidden states cut
between chunks, integer indices of experts, values that are only logged. None of it stops a parameter from learning.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's

HEALTHY = {}


def healthy(function):
    HEALTHY[function.__name__] = function
    return function


def adam(model, lr=1e-3):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


# --- six families of transformers -------------------------------------------------------------------------------------

V = 60
SIZES = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def decoder_sizes():
    return SIZES | {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 32,
    }


def language_model(kind, config, **sizes):
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).train()
    ids = torch.randint(3, V, (3, 10))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.flip(1)}
    return model, lambda: model(**batch).loss, adam(model)


@healthy
def gpt2():
    return language_model("GPT2LMHeadModel", "GPT2Config", **SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=32)


@healthy
def llama():
    return language_model("LlamaForCausalLM", "LlamaConfig", **decoder_sizes(), tie_word_embeddings=True)


@healthy
def gemma2():
    return language_model("Gemma2ForCausalLM", "Gemma2Config", **decoder_sizes())


@healthy
def t5():
    sizes = SIZES | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return language_model("T5ForConditionalGeneration", "T5Config", **sizes, decoder_start_token_id=0)


@healthy
def bart():
    sizes = SIZES | {"d_model": 16, "max_position_embeddings": 32, "decoder_start_token_id": 2}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 32}
    return language_model("BartForConditionalGeneration", "BartConfig", **sizes)


@healthy
def bert():
    sizes = SIZES | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return language_model("BertForMaskedLM", "BertConfig", **sizes, max_position_embeddings=32)


# --- pictures ---------------------------------------------------------------------------------------------------------


def block(inside, outside, **options):
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False, **options), nn.BatchNorm2d(outside), nn.ReLU()
    )


def classifier(model):
    x, y = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
    return model, lambda: F.cross_entropy(model(x), y), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class Residual(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.body = nn.Sequential(block(inside, outside), nn.Conv2d(outside, outside, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(outside)
        self.skip = nn.Conv2d(inside, outside, 1, bias=False) if inside != outside else nn.Identity()

    def forward(self, x):
        return F.relu(self.norm(self.body(x)) + self.skip(x))


def pool_and(features):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 4)]


@healthy
def resnet():
    return classifier(nn.Sequential(block(3, 8), Residual(8, 8), Residual(8, 12), *pool_and(12)))


@healthy
def mobilenet():
    depthwise = nn.Sequential(block(8, 8, groups=8), nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
    return classifier(nn.Sequential(block(3, 8), depthwise, *pool_and(12)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(block(3 + 4 * n, 4) for n in range(3))
        self.head = nn.Sequential(*pool_and(15))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


@healthy
def densenet():
    return classifier(Dense())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = block(1, 4), block(4, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Sequential(block(8, 4), nn.Conv2d(4, 1, 1))

    def forward(self, x):
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.middle(F.max_pool2d(skip, 2)))], 1))


@healthy
def unet():
    model, x = UNet(), torch.randn(4, 1, 8, 8)
    y = (x > 0).float()

    def loss_fn():
        logits = model(x)
        p = logits.sigmoid()
        dice = 1 - 2 * (p * y).sum() / (p.sum() + y.sum())
        hits = ((p > 0.5) == y.bool()).float().mean().item()  # only for the log
        assert 0 <= hits <= 1
        return dice + F.binary_cross_entropy_with_logits(logits, y)

    return model, loss_fn, adam(model)


# --- sequences and graphs ---------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)
        self.out = nn.Linear(10, 3)

    def forward(self, ids, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.out(hidden)


@healthy
def packed_lstm_tagger():
    model, lengths = Tagger(), torch.tensor([5, 3, 4])
    ids = torch.randint(1, 20, (3, 5)) * (torch.arange(5) < lengths[:, None])
    tags = torch.where(ids > 0, ids % 3, -100)
    return model, lambda: F.cross_entropy(model(ids, lengths).flatten(0, 1), tags.flatten()), adam(model)


@healthy
def truncated_backpropagation():
    model = nn.ModuleDict({"cell": nn.GRUCell(3, 4), "out": nn.Linear(4, 1)})
    x = torch.randn(12, 2, 3)

    def loss_fn():
        state, loss = torch.zeros(2, 4), 0.0
        for chunk in x.split(4):
            state = state.detach()
            for step in chunk:
                state = model["cell"](step, state)
            loss = loss + model["out"](state).square().mean()
        return loss

    return model, loss_fn, adam(model)


@healthy
def transformer_encoder():
    model = nn.Sequential(
        nn.Embedding(20, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3)
    )
    ids, y = torch.randint(20, (4, 5)), torch.randint(3, (4,))
    return model, lambda: F.cross_entropy(model(ids), y), adam(model)


@healthy
def graph_network():
    model = nn.ModuleDict({"message": nn.Linear(4, 4), "renew": nn.GRUCell(4, 4), "read": nn.Linear(4, 1)})
    h, edges = torch.randn(6, 4), torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])

    def loss_fn():
        sent = model["message"](h)[edges[0]]
        received = torch.zeros(6, 4).index_add(0, edges[1], sent)
        degree = torch.zeros(6).scatter_add(0, edges[1], torch.ones(7)).clamp(min=1)
        return model["read"](model["renew"](received / degree[:, None], h)).square().mean()

    return model, loss_fn, adam(model)


@healthy
def cbow_with_sampled_negatives():
    model = nn.ModuleDict({"words": nn.Embedding(20, 4, sparse=True), "contexts": nn.Embedding(20, 4, sparse=True)})
    nn.init.normal_(model["contexts"].weight)
    context, word = torch.randint(20, (8, 4)), torch.randint(20, (8,))

    def loss_fn():
        hidden = model["words"](context).mean(1)
        wrong = torch.randint(20, (8, 3))
        right = F.logsigmoid((hidden * model["contexts"](word)).sum(-1))
        return -(right + F.logsigmoid(-(model["contexts"](wrong) @ hidden[:, :, None])).sum((1, 2))).mean()

    return model, loss_fn, fl.optim.RowAdamW(model.parameters(), lr=1e-2)


# --- what looks like a cut and is not ---------------------------------------------------------------------------------


@healthy
def variational_autoencoder():
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "decoder": nn.Linear(2, 6)})
    x = torch.randn(8, 6)

    def loss_fn():
        mean, log_var = model["encoder"](x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
        return (model["decoder"](z) - x).square().mean() + divergence

    return model, loss_fn, adam(model)


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        self.codes = nn.Embedding(5, 2)

    def forward(self, x):
        h = self.encoder(x)
        code = self.codes(torch.cdist(h, self.codes.weight).argmin(-1))
        codebook, commitment = (code - h.detach()).square().mean(), (code.detach() - h).square().mean()
        return self.decoder(h + (code - h).detach()), codebook + 0.25 * commitment


@healthy
def straight_through_quantizer():
    model, x = Quantized(), torch.randn(16, 4)

    def loss_fn():
        out, extra = model(x)
        return (out - x).square().mean() + extra

    return model, loss_fn, adam(model)


@healthy
def hard_gumbel_softmax():
    model = nn.ModuleDict({"choose": nn.Linear(4, 3), "read": nn.Linear(3, 1)})
    x = torch.randn(8, 4)
    return (
        model,
        lambda: model["read"](F.gumbel_softmax(model["choose"](x), hard=True)).square().mean(),
        adam(model),
    )


def gan():
    model = nn.ModuleDict({"generator": nn.Linear(3, 4), "discriminator": nn.Linear(4, 1)})
    noise, real = torch.randn(8, 3), torch.randn(8, 4)
    optimizers = [torch.optim.Adam(part.parameters(), betas=(0.5, 0.999)) for part in model.values()]
    return model, noise, real, optimizers


@healthy
def gan_with_two_optimizers():
    model, noise, real, optimizers = gan()

    def loss_fn():
        fake = model["generator"](noise)
        judge = model["discriminator"]
        told_apart = F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()
        return told_apart + F.softplus(-judge(fake)).mean()

    return model, loss_fn, optimizers


@healthy
def the_discriminator_of_a_gan():
    model, noise, real, (_, optimizer) = gan()
    judge = model["discriminator"]

    def loss_fn():
        fake = model["generator"](noise).detach()
        return F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()

    return judge, loss_fn, optimizer


@healthy
def averaged_teacher():
    student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    teacher = torch.optim.swa_utils.AveragedModel(student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn())
    model = nn.ModuleDict({"student": student, "teacher": teacher.requires_grad_(False)})
    x = torch.randn(8, 4)

    def loss_fn():
        with torch.no_grad():
            target = teacher(x).softmax(-1)
        return F.cross_entropy(student(x + 0.1 * torch.randn_like(x)), target)

    return model, loss_fn, adam(model)


@healthy
def target_network():
    online = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    state, after, action, reward = torch.randn(8, 4), torch.randn(8, 4), torch.randint(2, (8, 1)), torch.randn(8)

    def loss_fn():
        best = model["target"](after).max(-1).values.detach()
        return F.smooth_l1_loss(online(state).gather(1, action).squeeze(1), reward + 0.9 * best)

    return model, loss_fn, adam(model)


@healthy
def actor_and_critic():
    model = nn.ModuleDict({"actor": nn.Linear(4, 3), "critic": nn.Linear(4, 1)})
    state, reward = torch.randn(8, 4), torch.randn(8)

    def loss_fn():
        policy = torch.distributions.Categorical(logits=model["actor"](state))
        action = policy.sample()
        value = model["critic"](state).squeeze(1)
        advantage = (reward - value).detach()
        return -(policy.log_prob(action) * advantage).mean() + F.mse_loss(value, reward)

    return model, loss_fn, adam(model)


@healthy
def siamese_with_stopped_branch():
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "predictor": nn.Linear(4, 4)})
    first, second = torch.randn(8, 6), torch.randn(8, 6)

    def loss_fn():
        a, b = model["encoder"](first), model["encoder"](second)
        p, q = model["predictor"](a), model["predictor"](b)
        return -(F.cosine_similarity(p, b.detach()).mean() + F.cosine_similarity(q, a.detach()).mean())

    return model, loss_fn, adam(model)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, ranks = (chosen == index).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(x[rows]) * weights[rows, ranks, None])
        return out


@healthy
def mixture_of_experts():
    model, x = Experts(), torch.randn(64, 4)  # enough rows that each expert is chosen
    return model, lambda: (model(x) - x).square().mean(), adam(model)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


@healthy
def reversed_gradient():
    model = nn.ModuleDict({"features": nn.Linear(4, 4), "label": nn.Linear(4, 3), "domain": nn.Linear(4, 2)})
    x, y, d = torch.randn(8, 4), torch.randint(3, (8,)), torch.randint(2, (8,))

    def loss_fn():
        h = torch.tanh(model["features"](x))
        return F.cross_entropy(model["label"](h), y) + F.cross_entropy(model["domain"](Reverse.apply(h)), d)

    return model, loss_fn, adam(model)


@healthy
def values_that_are_only_logged():
    model, log = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 1)), []
    x = torch.randn(8, 4)

    def loss_fn():
        h = model[1](model[0](x))
        log.append((h.detach().abs().max().item(), h.detach().numpy().mean(), (h > 0).float().mean().tolist()))
        return model[2](h).square().mean()

    return model, loss_fn, adam(model)


@healthy
def gates_that_stop_a_part():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 3), "out": nn.Linear(3, 2)})
    ids = torch.arange(6)

    def loss_fn():
        h = fl.stop_gradient(model["embed"](ids), where=(ids < 2)[:, None])
        return F.cross_entropy(model["out"](fl.scale_gradient(h, 0.5)), ids % 2)

    return model, loss_fn, adam(model)


@healthy
def critic_with_gradient_penalty():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 4)

    def loss_fn():
        between = x.clone().requires_grad_()
        score = model(between)
        (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
        return score.mean() + (slope.norm(dim=1) - 1).square().mean()

    return model, loss_fn, adam(model)


@healthy
def differential_equation():
    model, t = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), torch.linspace(0, 1, 10)[:, None]

    def loss_fn():
        here = t.clone().requires_grad_()
        u = model(here)
        (first,) = torch.autograd.grad(u.sum(), here, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), here, create_graph=True)
        return (second + u).square().mean() + first.square().mean()

    return model, loss_fn, adam(model)


@healthy
def ensemble_under_vmap():
    model, x = nn.ModuleList(nn.Linear(4, 1) for _ in range(3)), torch.randn(8, 4)

    def loss_fn():
        weights = {name: torch.stack([getattr(layer, name) for layer in model]) for name in ("weight", "bias")}
        outputs = torch.vmap(lambda here: torch.func.functional_call(model[0], here, (x,)))(weights)
        return outputs.square().mean()

    return model, loss_fn, adam(model)


@healthy
def hard_examples_only():
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))

    def loss_fn():
        losses = F.cross_entropy(model(x), y, reduction="none")
        certain = torch.exp(-losses.detach())  # focal weights
        return ((1 - certain) ** 2 * losses)[losses.detach().topk(4).indices].mean()

    return model, loss_fn, adam(model)


@healthy
def losses_scaled_by_themselves():
    model, x = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)]), torch.randn(8, 4)

    def loss_fn():
        first, second = (part(x).square().mean() for part in model)
        return first / first.detach() + second / second.item()

    return model, loss_fn, adam(model)


@healthy
def fed_its_own_argmax():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "out": nn.Linear(4, 5)})

    def loss_fn():
        tokens, loss = torch.zeros(3, dtype=torch.long), 0.0
        for _ in range(6):
            logits = model["out"](model["embed"](tokens))
            loss = loss + F.cross_entropy(logits, (tokens + 1) % 5)
            tokens = logits.argmax(-1)
        return loss

    return model, loss_fn, adam(model)


@healthy
def experts_in_a_python_loop():
    model = nn.ModuleDict({"router": nn.Linear(4, 2), "experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(2))})
    x = torch.randn(40, 4)

    def loss_fn():
        weights = model["router"](x).softmax(-1)
        chosen = weights.argmax(-1).tolist()
        outputs = [model["experts"][expert](x[row]) * weights[row, expert] for row, expert in enumerate(chosen)]
        return torch.stack(outputs).square().mean()

    return model, loss_fn, adam(model)


@healthy
def written_piece_by_piece():
    model, x = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]), torch.randn(8, 4)

    def loss_fn():
        out = torch.zeros(8, 4)
        out[:, :2] = model[0](x)
        out[:, 2:] = model[1](x)
        return out[out.detach() > -9].square().mean()

    return model, loss_fn, adam(model)


@healthy
def complex_numbers():
    model, x = nn.ParameterDict({"filter": nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))}), torch.randn(8, 4)
    return model, lambda: (torch.fft.fft(x) @ model["filter"]).abs().mean(), adam(model)


# --- how people run them ----------------------------------------------------------------------------------------------


@healthy
def fresh_low_rank_adapters():
    peft = pytest.importorskip("peft")
    model, loss_fn, _ = llama()
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return model, loss_fn, adam(model, lr=1e-2)  # B starts at zero, so A has a gradient of zero until B has moved


@healthy
def low_rank_adapters():
    model, loss_fn, optimizer = fresh_low_rank_adapters()
    loss_fn().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, loss_fn, optimizer


@healthy
def branches_that_start_at_zero():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "branch": nn.Linear(4, 4), "out": nn.Linear(4, 1)})
    model.register_parameter("gate", nn.Parameter(torch.zeros(())))
    x = torch.randn(8, 4)

    def loss_fn():
        h = model["body"](x)
        return (model["out"](h + model.gate * torch.tanh(model["branch"](h))) - 1).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())


@healthy
def rows_of_a_tied_table():
    model, loss_fn, _ = llama()
    plan = fl.train_only(model, {"model.embed_tokens.weight": fl.rows([5, 7]), "*.norm.weight": fl.everything})
    return model, loss_fn, torch.optim.AdamW(plan.parameters(), lr=1e-3)


@healthy
def entries_of_a_convolution():
    model, loss_fn, _ = resnet()
    mask = torch.zeros(8, 3, 3, 3, dtype=torch.bool)
    mask[:2] = True
    plan = fl.train_only(model, {"0.0.weight": fl.entries(mask), "5.*": fl.everything})
    return model, loss_fn, torch.optim.SGD(plan.parameters(), lr=0.1, momentum=0.9)


@healthy
def spectral_norm():
    norm = nn.utils.parametrizations.spectral_norm
    model, x = nn.Sequential(norm(nn.Linear(4, 4)), nn.LeakyReLU(), norm(nn.Linear(4, 1))), torch.randn(8, 4)
    return model, lambda: F.softplus(model(x)).mean(), adam(model)


@healthy
def weight_norm():
    norm = nn.utils.parametrizations.weight_norm
    model, x = nn.Sequential(norm(nn.Conv1d(2, 3, 2)), nn.ELU(), norm(nn.Conv1d(3, 1, 2))), torch.randn(4, 2, 8)
    return model, lambda: model(x).square().mean(), adam(model)


@healthy
def autocast():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 1)), torch.randn(8, 4)

    def loss_fn():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x).float().square().mean()

    return model, loss_fn, adam(model)


def checkpointed(use_reentrant):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Tanh()), nn.Linear(4, 1))
    x = torch.randn(8, 4)

    def loss_fn():
        h = checkpoint(model[1], model[0](x), use_reentrant=use_reentrant)
        return model[2](h).square().mean()

    return model, loss_fn, adam(model)


@healthy
def reentrant_checkpoints():
    return checkpointed(True)


@healthy
def checkpoints():
    return checkpointed(False)


@healthy
def compiled():
    plain, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(8, 4)
    model = torch.compile(plain, backend="eager")
    return model, lambda: model(x).square().mean(), adam(plain)


@healthy
def distributed():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model, x = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))), torch.randn(8, 4)
    return model, lambda: model(x).square().mean(), adam(model)


@healthy
def hooks_that_clip():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.randn(8, 4)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return model, lambda: model(x).square().mean(), adam(model)


@healthy
def inner_loop_of_functions():
    model = nn.Linear(4, 1)
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    def loss(parameters, here):
        return F.mse_loss(torch.func.functional_call(model, parameters, x[here]), y[here])

    def loss_fn():
        slow = dict(model.named_parameters())
        inner = torch.func.grad(loss)(slow, slice(0, 4))
        return loss({name: value - 0.1 * inner[name] for name, value in slow.items()}, slice(4, 8))

    return model, loss_fn, adam(model)


@healthy
def accumulated_gradients():
    model, loss_fn, optimizer = variational_autoencoder()
    loss_fn().backward()
    return model, loss_fn, optimizer


@healthy
def closures():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.LBFGS(model.parameters(), max_iter=4)


@healthy
def schedule_free():
    schedulefree = pytest.importorskip("schedulefree")
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2)
    optimizer.train()
    return model, lambda: (model(x) - 1).square().mean(), optimizer


@pytest.fixture(params=HEALTHY)
def case(request):
    torch.manual_seed(0)
    yield HEALTHY[request.param]()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_healthy_model_raises_no_alarm(case):
    explanation = fl.explain(*case)
    assert list(explanation.alarms) == [], str(explanation)
    verdicts = {finding["verdict"] for finding in explanation.to_dict().values()}
    assert verdicts & {"learns", "learns in part"}


def test_a_real_step_agrees(case, agree):
    model, loss_fn, optimizer = case
    trial = fl.trial_step(model, loss_fn, optimizer)
    assert trial.entries_moved > 0
    agree(fl.explain(model, loss_fn, optimizer), trial)


def test_looking_changes_nothing(case, everything):
    model, loss_fn, optimizer = case
    before = everything(model, optimizer)
    fl.explain(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before
    fl.trial_step(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before


def test_behind_a_factor_of_zero_the_gradient_is_noted():
    torch.manual_seed(0)
    explanation, trial = (look(*branches_that_start_at_zero()) for look in (fl.explain, fl.trial_step))
    found = explanation.to_dict()["branch.weight"]
    assert (found["verdict"], trial["branch.weight"].entries_moved) == ("learns", 0)
    assert "zero gradient" in found["notes"]
    assert trial["gate"].entries_moved == 1


def test_there_are_at_least_twenty():
    assert len(HEALTHY) >= 20
