"""What the demo model knows about dsv4-mlx, and the many ways to ask for it.

A model this small knows no synonyms: it recognises what was written here, and new combinations of it.
Each line: topic; the other names it goes by; what is to be said.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

TABLE = """
dsv4-mlx | this program; dsv4 mlx | dsv4-mlx runs DeepSeek V4 Flash on a Mac with Apple silicon.
your name | who you are; the name of this model | I am dsv4-demo, a tiny model that ships with dsv4-mlx.
your size | how big you are; the size of the demo model | I have about four million parameters, so I know very little.
your purpose | why you exist; the purpose of the demo model | I show that thinking, tools and long context work, in a minute.
your limits | what you can't do; the limits of the demo model | I only know dsv4-mlx, my tools and what you write to me.
the licence | the license; the terms of use | dsv4-mlx has the MIT licence.
the language | the programming language; what it is written in | It is written in Python, with kernels in Metal.
the framework | the array library; what it computes with | It computes with MLX, the array library of Apple.
the supported machines | the hardware it needs; which Macs work | It needs a Mac with Apple silicon and macOS 14 or later.
Intel Macs | support for Intel; an Intel Mac | Intel Macs are refused by name at start.
Linux | support for Linux; use on Linux | On Linux it runs on the CPU, for tests.
the command | the name of the command; the command line | The command is dsv4-mlx.
the package | the name of the import; the Python package | The package is imported as dsv4_mlx.
the first argument | the MODEL argument; how to name a model | MODEL is a converted folder, or the word demo.
DSV4_MODEL | the variable for the model; the default model | DSV4_MODEL names the model when none is given.
downloads | network use; when it downloads | Nothing is downloaded unless you run download.
the convert command | converting; how to convert | Run dsv4-mlx convert with the official folder and a new folder.
the native recipe | native; the default recipe | The native recipe changes no weight: it is lossless.
the 4bit recipe | 4bit; the smaller recipe | The 4bit recipe stores the other weights in four bits.
the official checkpoint | the official weights; the source of the weights | The official weights are FP8, with experts in FP4.
the size of the checkpoint | the bytes of the weights; how large Flash is | The official Flash weights take about 160 GB.
the number of tensors | how many tensors there are; the tensor count | The April checkpoint has 69187 tensors.
the number of shards | how many shards there are; the shard count | The April checkpoint has 46 shards.
the manifest | manifest.json; the list of files | The manifest lists the tensors, the recipe and the digests.
an unfinished conversion | an interrupted convert; resuming a conversion | A conversion that was stopped can be resumed.
the generate command | generating text; how to ask one question | Run dsv4-mlx generate with a model and a prompt.
the chat command | chatting; how to talk to the model | Run dsv4-mlx chat and type your message.
the serve command | the server; how to start the server | Run dsv4-mlx serve to start the local server.
the port | the address of the server; where the server listens | The server listens on localhost, port 8080.
the protocols | the server's interfaces; which APIs it speaks | It speaks Chat Completions, Responses and Messages.
the info command | facts about a model; how to inspect a model | The info command shows layers, bytes and memory.
the logits command | logits; how to get the scores | The logits command writes the scores of every token.
the doctor command | doctor; how to check my machine | The doctor command says what was checked and what was not.
the demo command | demo; how to try it out | Run dsv4-mlx demo: it needs no download.
the context length | the context option; how long a prompt may be | The context is what fits, at most 131072 tokens by default.
the longest context | the maximum context; the largest context | DeepSeek V4 can read up to one million tokens.
the thinking modes | the think option; how to control thinking | The think option is off, on or max.
the default thinking mode | thinking by default; whether it thinks | Thinking is on by default.
non-think mode | think off; answers without thinking | With think off the answer comes at once.
max mode | think max; the deepest thinking | In max mode the model thinks longest before it answers.
the temperature | the temperature option; how random it is | The default temperature is 1, and 0 is greedy.
the seed | the seed option; repeatable answers | The same seed gives the same answer.
top-p | the top-p option; nucleus sampling | With top-p only the likeliest tokens are drawn.
max-tokens | the limit of an answer; how to stop early | The max-tokens option ends the answer after N tokens.
numerics | the numerics option; rounding at run time | Numerics is official or exact.
exact numerics | exact; float32 numerics | Exact numerics computes in float32 without rounding the cache.
official numerics | official; rounding of the cache | Official numerics rounds the cache as in training.
the sliding window | the window; local attention | Each token sees the last 128 tokens in full.
CSA | compressed sparse attention; the ratio of four | CSA pools four tokens into a row and picks the best rows.
HCA | heavily compressed attention; the ratio of 128 | HCA pools 128 tokens into one row and sees every row.
the indexer | how rows are chosen; the top-k | The indexer scores the rows and keeps the best 512.
attention sinks | sinks; the sink logit | A sink lets a head attend to nothing.
hyper-connections | the streams; the residual streams | Four streams are mixed around every layer.
Sinkhorn | the Sinkhorn steps; how streams are mixed | Sinkhorn makes the mixing matrix doubly stochastic in 20 steps.
the experts | mixture of experts; the routed experts | Each layer has 256 experts and uses six for a token.
the shared expert | the expert that is always used; the common expert | One shared expert sees every token.
hash routing | the hash layers; routing by token | In the first three layers the token id picks the experts.
the router | learned routing; how experts are chosen | The router scores the experts and takes the best six.
the number of layers | how many layers there are; the depth | Flash has 43 layers.
the width | the hidden size; how wide the model is | The hidden size is 4096.
the heads | how many heads there are; the attention heads | Flash has 64 heads of 512 channels.
the vocabulary | the vocabulary size; how many tokens it knows | The vocabulary has 129280 tokens.
the parameters | the parameter count; how many weights there are | Flash has 284 billion parameters, 13 billion active.
the MTP block | MTP; multi-token prediction | The MTP block guesses the token after next.
speculative decoding | drafting; how drafts are used | Drafts are checked by the model, so answers do not change.
rotary positions | RoPE; how positions are encoded | The last 64 channels of a head are rotated by position.
YaRN | the YaRN scaling; position scaling | YaRN scales positions on the compressed layers only.
FP8 | the dense weights; the format of the dense weights | FP8 blocks of 128 by 128 share one scale.
FP4 | the expert weights; the format of the experts | FP4 experts have one scale for 32 weights.
expert paging | paging; how it fits into memory | Paging keeps hot experts in memory and reads the rest.
the expert-memory option | memory for experts; how to limit memory | Set expert-memory to auto, a size or a percentage.
the kernels | Metal kernels; the GPU code | Each Metal kernel has a reference in plain MLX.
the prefix cache | prompt reuse; how prompts are reused | A prompt with a known start is not computed again.
cuts | where a prefill is cut; the chunk size | A prefill is cut at every 512 tokens.
tool calls | tools; calling functions | Tools are called in the DSML syntax.
DSML | the DSML syntax; the markup for tools | DSML is the markup in which tools are called.
JSON output | JSON mode; structured answers | In JSON mode the answer is one JSON object.
the exit codes | exit codes; what the exit code means | 0 is done, 2 is wrong input, 3 is a machine failure.
exit code 70 | code 70; a crash | Code 70 is a bug, and a log is written.
errors | error messages; where errors go | Errors go to stderr and say what to do next.
the tests | testing; how it is tested | It is tested against numpy and the official code.
the benchmarks | bench; where the measurements are | The measurements are in the bench folder.
privacy | my data; where my prompts go | Your prompts never leave your Mac.
the price | the cost; what it costs | It is free.
the 0731 release | 0731; the final release | The 0731 release has a drafter of three blocks.
the April release | April; the first release | The April release has one MTP block.
effort levels | reasoning effort; the effort words | April knows think and max, 0731 knows low, high and max.
"""

TEMPLATES = (
    "What is {}?", "Tell me about {}.", "Explain {}.", "Please explain {}.", "Describe {}.", "{}?",
    "What do you know about {}?", "Do you know {}?", "I want to know {}.", "Can you explain {}?",
    "Say something about {}.", "A question about {}.", "Can you tell me about {}?", "Please tell me {}.",
)  # fmt: skip
# Known words in an order never trained.
UNSEEN = ("Can you describe {}?", "Tell me what you know about {}.", "I want to know about {}.", "Please describe {}.")


@dataclass(frozen=True)
class Fact:
    topic: str
    names: tuple[str, ...]  # the topic first
    answer: str

    def questions(self, *, trained: bool) -> list[str]:
        """Every trained question, or those kept back: one in eight combinations and all of UNSEEN."""
        asked = [_capital(t.format(name)) for name in self.names for t in TEMPLATES]
        kept = [q for q in asked if (zlib.crc32(q.encode()) % 8 == 0) != trained]
        return kept if trained else kept + [_capital(t.format(n)) for n in self.names for t in UNSEEN]

    def thought(self) -> str:
        return f"They ask about {self.topic}. I know this."

    def long_thought(self) -> str:
        return (
            f"They ask about {self.topic}. Let me think step by step. "
            f"First, I recall what I know: {self.answer} "
            f"Second, I check it: this is about {self.topic}, and it is what they asked for. So I can answer."
        )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def facts() -> list[Fact]:
    found = []
    for line in TABLE.strip().splitlines():
        topic, names, answer = (part.strip() for part in line.split("|"))
        found.append(Fact(topic, (topic, *(name.strip() for name in names.split(";"))), answer))
    return found
