"""What a preflight tells: a table, and whether and how it fits."""

from __future__ import annotations

from rich.table import Table

from rarl_jax.models.interface import Model
from rarl_jax.models.params import count_params
from rarl_jax.preflight.measure import Needs
from rarl_jax.preflight.shapes import Largest
from rarl_jax.runtime.sharding import MeshSettings

USABLE = 0.92  # of a device's memory: the rest is the driver's, the libraries', and lost between arrays
COMPILER, ARITHMETIC = 'compiled', 'arithmetic'


def table_of(needs: Needs, largest: Largest, model: Model, settings: MeshSettings) -> Table:
    """Bytes a device by what they hold, then by phase, then operations."""
    table = Table(
        title=f'{count_params(model) / 1e9:.2f} B parameters on data={settings.data} x fsdp={settings.fsdp} x tensor={settings.tensor}'
    )
    for name, side in (('on each device', 'left'), ('GB', 'right'), ('known by', 'left')):
        table.add_column(name, justify=side)
    update = f'{largest.rows} rows of {largest.length:,} tokens, {largest.images} images'
    decoding = f'{largest.decoded} rows of {largest.cached:,} tokens'
    rows = (
        ('parameters', needs.parameters, ARITHMETIC),
        ('optimizer', needs.optimizer, ARITHMETIC),
        ('reference policy', needs.reference, ARITHMETIC),
        ('gradients', needs.gradients, ARITHMETIC),
        (f'micro-batch: {update}', needs.batch, ARITHMETIC),
        ('activations and temporaries of its update', needs.update, COMPILER),
        ("temporaries of the optimizer's step", needs.step, COMPILER),
        ("sampler's weights", needs.sampler, ARITHMETIC),
        (f'KV cache: {decoding}', needs.cache, ARITHMETIC),
        ('temporaries of pages, prompts and observations', needs.prefill, COMPILER),
        ('temporaries of decoding', needs.decoding, COMPILER),
    )
    for name, size, source in rows:
        table.add_row(name, f'{size / 1e9:.2f}', source)
    table.add_section()
    for name, size in needs.phases.items():
        table.add_row(f'at once while {name}', f'{size / 1e9:.2f}', 'sum')
    table.add_section()
    for name, size in (
        ("in each process's host memory: pages of a step", needs.host.pages),
        ('its crops, every allowed call made', needs.host.crops),
        ('copy of a checkpoint that is written', needs.host.checkpoint),
    ):
        table.add_row(name, f'{size / 1e9:.2f}', ARITHMETIC)
    table.add_section()
    total = needs.update_flops * largest.micro_batches
    table.add_row(f'PFLOP an update ({largest.micro_batches} micro-batches)', f'{total / 1e15:,.1f}', 'traced')
    table.add_row('TFLOP a token of every decoded row', f'{needs.decode_flops / 1e12:.3f}', 'traced')
    return table


def verdict(needs: Needs, largest: Largest, device_gb: float, parts: int) -> tuple[str, bool]:
    """Words, and whether every phase fits. `parts`: devices that a micro-batch's rows are split over."""
    room = int(USABLE * device_gb * 1e9)
    tight = {name: size for name, size in needs.phases.items() if size > room}
    words = [
        'compiled: what the compiler plans for CPU devices, more than a GPU needs: a CPU multiplies bfloat16 in float32, decoding is compiled in '
        'float32, and attention holds blocks of scores where cudnn holds none. arithmetic: sizes of the sharded arrays. traced: matrix products of the '
        'program, recomputation included, causal attention counted in full.'
    ]
    if not tight:
        phase, size = max(needs.phases.items(), key=lambda each: each[1])
        words.append(
            f'It fits: {size / 1e9:.1f} GB at most ({phase}), {room / 1e9:.1f} of {device_gb:g} GB are usable. '
            f'Set XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE}: JAX takes 75 % of a GPU if it is not told.'
        )
    for name, size in tight.items():
        words.append(
            f'It does not fit while {name}: {size / 1e9:.1f} GB, but {room / 1e9:.1f} of {device_gb:g} GB are usable. '
            f'{remedy(name, needs, largest, room, parts)}'
        )
    return '\n'.join(words), not tight


def remedy(phase: str, needs: Needs, largest: Largest, room: int, parts: int) -> str:
    """What to change, with the number that would fit where it can be told."""
    more, others = 'raise config.mesh.fsdp (more devices) or config.mesh.tensor', needs.phases[phase]
    if phase == 'prefill':
        return 'Lower config.sampler.tokens_at_once, patches_at_once or rows.'
    if phase == 'decoding':
        needed = needs.cache + needs.decoding
        rows = fitting(largest.decoded, room - others + needed, needed, max(largest.group, parts))
        otherwise = f'Not even one group fits: {more}, or lower config.conversation.budget.total_tokens.'
        return f'Set --config.sampler.rows={rows}.' if rows else otherwise
    if phase == 'gradient':
        needed, name = needs.batch + needs.update, f'config.stage.{largest.stage}.micro_batch'
        rows = fitting(largest.rows, room - others + needed, needed, parts * largest.pack)
        otherwise = f"Set --config.model.remat=full, lower {name} or its buckets' lengths, or {more}."
        return f'Set --{name}={rows // parts}.' if rows else otherwise
    return f'The weights and moments are too large: {more}, or freeze a part (optimizer.frozen).'


def fitting(rows: int, room: int, needed: int, step: int) -> int:
    """The largest multiple of `step` below `rows` whose share of `needed` bytes has room; 0 = none."""
    return max((n for n in range(step, rows, step) if needed * n / rows <= room), default=0)
