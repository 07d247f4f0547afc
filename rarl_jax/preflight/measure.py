"""Lowers and compiles the run's own programs from shapes, and reads off what each device holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from rarl_jax.learner.batches import multiple, round_up
from rarl_jax.learner.losses import Denominators
from rarl_jax.learner.optim import make_optimizer, stands
from rarl_jax.learner.update import Learner, Updater, imitation, reinforcement
from rarl_jax.models.interface import Cache, Model
from rarl_jax.models.lora import Adapted, adapter_axes, beside, init_adapter
from rarl_jax.models.params import Params, abstract_params, logical_axes
from rarl_jax.models.vision_batch import VisionBatch, vision_shapes
from rarl_jax.preflight.flops import count_flops
from rarl_jax.preflight.host import HostNeeds, host_needs
from rarl_jax.preflight.shapes import Largest, abstract, abstract_rows, image_shape, integers, micro_batch
from rarl_jax.runtime.sharding import AXES, batch_parts, constrain, param_shardings, replicated, shardings_of
from rarl_jax.sampler.choice import SamplingMethod
from rarl_jax.sampler.images import call_shape
from rarl_jax.sampler.programs import (
    Chunk,
    Program,
    Rows,
    SamplingParams,
    cache_sharding,
    decode,
    encode_images,
    extend,
)
from rarl_jax.sampler.weights import copied_shardings
from rarl_jax.settings import RunSettings
from rarl_jax.stages.rl_settings import RlSettings


@dataclass(frozen=True)
class Needs:
    """Bytes on the fullest device, and operations of all devices together."""

    parameters: int
    optimizer: int
    reference: int  # weights of the policy that a KL term looks at; 0 = none
    gradients: int  # their sum over micro-batches
    batch: int  # the arrays of a micro-batch
    update: int  # temporaries of a micro-batch's passes: kept activations, its own gradient, what is at work
    step: int  # temporaries of the optimizer's step
    sampler: int  # its copy of the weights
    cache: int  # keys and values, all rows at their full length
    prefill: int  # temporaries of a call of the tower, or of the decoder on prompts and observations; the larger
    decoding: int  # temporaries
    update_flops: int  # of a micro-batch
    decode_flops: int  # of one token for every row of a process
    host: HostNeeds  # of a process, in its machine's memory

    @property
    def phases(self) -> dict[str, int]:
        """Bytes at the height of each part of a training step."""
        resident = self.parameters + self.optimizer + self.reference
        return {
            'decoding': resident + self.sampler + self.cache + self.decoding,
            'prefill': resident + self.sampler + self.cache + self.prefill,
            'gradient': resident + self.gradients + self.batch + self.update,
            'optimizer step': resident + self.gradients + self.step,
        }


def measure(settings: RunSettings, model: Model, largest: Largest, processes: int, mesh: Mesh) -> Needs:
    """What the largest update and decoding take on `mesh`."""
    stage = settings.stage[largest.stage]
    weights, trained, adapted = abstract_policy(settings, model, mesh)
    optimizer = make_optimizer(stage.optimizer, trained, stage.steps)
    learner = Learner.abstract(trained, optimizer)
    updates = measure_update(settings, model, learner, adapted, optimizer, largest, mesh)
    local = sampler_mesh(mesh, processes)
    return Needs(
        parameters=bytes_of(weights),
        optimizer=bytes_of(learner.opt_state),
        reference=bytes_of(weights)
        if adapted is None and isinstance(stage, RlSettings) and stage.loss.kl_weight
        else 0,
        gradients=bytes_of(trained),
        host=host_needs(settings, model.config.vision, processes, whole_bytes((learner.params, learner.opt_state))),
        **updates,
        **measure_decoding(settings, model, weights, largest, local),
    )


def abstract_policy(settings: RunSettings, model: Model, mesh: Mesh) -> tuple[Params, Params, Adapted | None]:
    """The policy's weights (an adapter's factors among them), what is trained, and what an adapter belongs to.

    The last is in float32, for the update to be compiled with: a CPU adds float32 copies of all bfloat16 layers, which no GPU needs.
    """
    base = abstract_params(model)
    base = abstract(base, param_shardings(base, logical_axes(model), mesh, settings.mesh.rules))
    if (lora := settings.model.lora) is None:
        return base, base, None
    adapter = jax.eval_shape(lambda: init_adapter(jax.random.key(0), model.config, lora))
    axes = adapter_axes(model.config, lora)
    adapter = abstract(adapter, param_shardings(adapter, axes, mesh, settings.mesh.rules))
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), base)
    return beside(base, adapter), adapter, Adapted(wide, lora)


def features_of(model: Model, images: VisionBatch) -> Any:
    """What the tower makes of images, without content."""

    def encode(params: Params, images: VisionBatch) -> Any:
        return model.apply({'params': params}, images, method='encode_images')

    return jax.eval_shape(encode, abstract_params(model), images)


def measure_update(
    settings: RunSettings,
    model: Model,
    learner: Learner,
    adapted: Adapted | None,
    optimizer: Any,
    largest: Largest,
    mesh: Mesh,
) -> dict[str, int]:
    """Of a micro-batch, whose gradient is added to the sum, and of the optimizer's step."""
    stage = settings.stage[largest.stage]
    objective = reinforcement(stage.loss) if isinstance(stage, RlSettings) else imitation
    updater = Updater(model, objective, optimizer, learner, adapted, frozen=stage.optimizer.frozen)
    vision = model.config.vision
    images = vision_shapes(image_shape(settings, largest, vision, batch_parts(mesh)), vision)
    if isinstance(stage, RlSettings) and stands(learner.params, stage.optimizer.frozen, 'vision'):
        images = features_of(model, images)
    batch = abstract_rows(micro_batch(largest, images), mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    denominators = Denominators(number, number, number)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh, 0))
    metrics = dict.fromkeys(updater.metric_names(learner.params, batch, denominators), scalar)
    traced = updater.accumulate.trace(learner.params, updater.base, (learner.params, metrics), batch, denominators)
    applied = updater.apply.trace(learner.params, learner.opt_state, learner.params, number)
    return {
        'batch': bytes_of(batch),
        'update': temporaries(traced),
        'step': temporaries(applied),
        'update_flops': count_flops(traced.jaxpr),
    }


def measure_decoding(
    settings: RunSettings, model: Model, params: Params, largest: Largest, mesh: Mesh
) -> dict[str, int]:
    """Of one segment, every row's cache at its full length. `mesh` holds one process's devices.

    Compiled in float32: a CPU adds to a bfloat16 cache by way of a float32 copy of all of it, which no GPU needs.
    """
    sampling = model.clone(scan=False, remat='none', constrain=constrain(mesh))
    wide = sampling.clone(dtype=jnp.float32)
    rows = multiple(largest.decoded, batch_parts(mesh))
    weights, cache = abstract_copy(wide, params, mesh), abstract_cache(wide, rows, largest.cached, mesh)
    traced = decode.trace(
        decode_program(wide, settings),
        weights,
        cache,
        abstract_rows(Rows(*(integers(rows),) * 6), mesh),
        jax.ShapeDtypeStruct((), jnp.int32),
        abstract_sampling(wide, mesh),
    )
    return {
        'sampler': bytes_of(abstract_copy(sampling, params, mesh)),
        'cache': bytes_of(abstract_cache(sampling, rows, largest.cached, mesh)),
        'prefill': max(map(temporaries, prefill_programs(settings, wide, weights, cache, mesh))),
        'decoding': temporaries(traced),
        'decode_flops': count_flops(traced.jaxpr),
    }


def prefill_programs(settings: RunSettings, model: Model, weights: Params, cache: Cache, mesh: Mesh) -> Iterator[Any]:
    """A rollout's largest calls before it decodes: pages through the tower, prompts and observations into the cache."""
    sampler, parts, vision = settings.sampler, batch_parts(mesh), model.config.vision
    budget = settings.conversation.budget.total_tokens
    width = max(sampler.lengths, default=round_up(budget, (), 16))
    size = max(sampler.tokens_at_once // width // parts, 1)
    rows = parts * size
    chunk = Chunk(
        rows=integers(parts, size),
        ids=integers(rows, width),
        positions=integers(3, rows, width),
        features=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.no_features(rows, width)),
        feature_index=integers(rows, width),
        start=integers(rows),
        lengths=integers(rows),
    )
    pages = vision_shapes(call_shape((), settings.model.page, sampler.patches_at_once, vision), vision)
    yield encode_images.trace(model, weights, abstract_rows(pages, mesh))
    for fresh in (True, False):
        yield extend.trace(model, fresh, weights, cache, abstract_rows(chunk, mesh))


def decode_program(model: Model, settings: RunSettings) -> Program:
    """What a rollout of the run compiles; the number of a stop token changes nothing."""
    sampler = settings.sampler
    return Program(
        model=model,
        method=SamplingMethod(),
        stop_ids=(0,),
        segment=sampler.segment,
        early_exit=sampler.early_exit,
    )


def abstract_copy(model: Model, params: Params, mesh: Mesh) -> Params:
    """The sampler's weights."""
    copy, places = copied_shardings(model, shardings_of(params))
    return abstract(jax.eval_shape(copy, params), jax.tree.map(lambda x: NamedSharding(mesh, x.spec), places))


def abstract_sampling(model: Model, mesh: Mesh) -> SamplingParams:
    """How tokens are drawn, without the numbers."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    vocabulary = (model.config.text.vocab_size,)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh, 0))
    return SamplingParams(
        key, jax.ShapeDtypeStruct(vocabulary, jnp.bool_, sharding=replicated(mesh, 1)), number, number
    )


def abstract_cache(model: Model, rows: int, length: int, mesh: Mesh) -> Cache:
    """The sampler's keys and values."""
    cache = jax.eval_shape(lambda: model.init_cache(rows, length))

    def placed(x, axes):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cache_sharding(x.shape, axes, mesh))

    return tuple(jax.tree.map(placed, layer, model.cache_axes) for layer in cache)


def sampler_mesh(mesh: Mesh, processes: int) -> Mesh:
    """The devices of one of the run's processes, as `sharding.local_mesh` will arrange them."""
    devices, tensor = mesh.devices.ravel()[: mesh.size // processes], mesh.shape['tensor']
    if len(devices) % tensor or mesh.size % processes:
        raise ValueError(
            f'{processes} processes do not share {mesh.size} devices in whole tensor axes of {tensor}: correct --processes or config.mesh.'
        )
    if processes == 1:
        return mesh
    return Mesh(np.array(devices).reshape(1, -1, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def temporaries(traced: Any) -> int:
    """Bytes a device that the compiler plans beside a program's arguments and results."""
    return traced.lower().compile().memory_analysis().temp_size_in_bytes


def whole_bytes(arrays: Any) -> int:
    """Bytes of (abstract) arrays, all devices together."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(arrays))


def bytes_of(arrays: Any) -> int:
    """Bytes that a device holds of (abstract) arrays."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(arrays))
