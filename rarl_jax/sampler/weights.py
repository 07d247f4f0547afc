"""The policy as the sampler takes it: a copy of the weights, laid out for decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import PyTreeDef
from jaxtyping import Bool

from rarl_jax.conversation.dialogue import Host
from rarl_jax.models.interface import Model
from rarl_jax.models.params import Params, join_maps, map_stacks, unstack
from rarl_jax.runtime.sharding import constrain, copy_on, first_part, local_mesh, shardings_of, whole_on_each


@dataclass(frozen=True)
class Policy:
    """A model with the weights of one update, and the host's side of its conversations."""

    model: Model  # static; `scan` must be off
    params: Params  # layers apart, see `of`
    host: Host
    mesh: Mesh  # this process's devices: rows are split over them

    @classmethod
    def of(cls, model: Model, params: Params, host: Host, mesh: Mesh) -> Policy:
        """Makes the sampler's copy of the weights, once for a whole rollout. All processes call it together; what follows is each one's own.

        Layers are taken apart (slicing them at every token would read them twice), cast to what activations are, maps of one input joined, and all
        gathered from the training's `mesh` to where every token needs them: only a tensor axis stays split.
        """
        local = local_mesh(mesh)
        shardings, structure = jax.tree.flatten(shardings_of(params))
        copied = copier(model, structure, tuple(shardings))(params)
        sampling = model.clone(scan=False, remat='none', constrain=constrain(local))
        return cls(sampling, jax.tree.map(partial(copy_on, local), copied), host, local)

    def on_first_device(self) -> Policy:
        """The same on one of its devices alone, or on those that a tensor axis joins: no byte is moved."""
        mesh = first_part(self.mesh)
        return Policy(
            self.model.clone(constrain=constrain(mesh)),
            jax.tree.map(partial(copy_on, mesh), self.params),
            self.host,
            mesh,
        )

    @property
    def banned(self) -> Bool[np.ndarray, 'V']:
        """Ids that only the host writes, and those that decode to nothing."""
        banned = np.zeros(self.model.config.text.vocab_size, bool)
        banned[list(self.host.chat.banned_ids)] = True
        banned[self.host.chat.vocab_size :] = True
        return banned


@functools.cache
def copier(model: Model, structure: PyTreeDef, shardings: tuple[NamedSharding, ...]) -> Callable[[Params], Params]:
    """The program that makes the sampler's copy of params with these shardings."""
    copy, copied = copied_shardings(model, jax.tree.unflatten(structure, shardings))
    return jax.jit(copy, out_shardings=copied)


def copied_shardings(model: Model, shardings: Params) -> tuple[Callable[[Params], Params], Params]:
    """What makes the sampler's copy, and the shardings of the copy of params with `shardings`."""
    whole = jax.tree.map(whole_on_each, shardings)
    depths = {'text': model.config.text.num_layers, 'vision': model.config.vision.depth}
    # Of a joined matrix split over a tensor axis each device would need pieces of all maps.
    joins = jax.tree.leaves(shardings)[0].mesh.shape['tensor'] == 1

    def apart(tower, stack):
        one = jax.tree.map(lambda x: NamedSharding(x.mesh, PartitionSpec(*x.spec[1:])), stack)
        return {str(index): one for index in range(depths[tower])}

    def copy(params):
        params = unstack(jax.tree.map(lambda x: x.astype(model.dtype), params))
        return join_maps(params, partial(jnp.concatenate, axis=-1)) if joins else params

    copied = map_stacks(whole, apart)
    return copy, join_maps(copied, lambda maps: maps[0]) if joins else copied
