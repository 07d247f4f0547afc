"""Qwen3-VL (arXiv 2511.21631)."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Array, Float, Int

from rarl_jax.models.cache import Cache
from rarl_jax.models.decoder import features_at
from rarl_jax.models.model import Model
from rarl_jax.models.packed import Segments
from rarl_jax.models.qwen3_vl.vision import Features, VisionTower
from rarl_jax.models.vision_batch import VisionBatch

# Embeddings of the tokens, and what is added to the hidden states behind the first layers: nothing, or one array a layer, zero at text.
Embeds = tuple[Float[Array, 'B T D'], tuple[Float[Array, 'B T D'], ...]]


class Qwen3_VL(Model):
    """Some of the tower's features take the place of the image's tokens, the others join them behind the decoder's first layers."""

    tower: ClassVar[type[VisionTower]] = VisionTower

    def encode_images(self, images: VisionBatch) -> Features:
        """As Model.encode_images, and what goes to the decoder's layers."""
        return self.vision(images)

    def embed(
        self,
        ids: Int[Array, 'B T'],
        features: Features | None = None,
        feature_index: Int[Array, 'B T'] | None = None,
    ) -> Embeds:
        """As Model.embed; DeepStack's features at the same places."""
        if features is None:
            return self.text.embed(ids, None, None), ()
        embeds = self.text.embed(ids, features.tokens, feature_index)
        return embeds, tuple(features_at(each.astype(self.dtype), feature_index, 0) for each in features.deep)

    def image_embeds(self, features: Features) -> Float[Array, 'I M D']:
        """As Model.image_embeds."""
        return features.tokens

    def no_features(self, images: int, rows: int) -> Features:
        """As Model.no_features."""
        empty, layers = super().no_features, self.config.vision.deepstack_visual_indexes
        # Arrays of their own: the sampler writes into them.
        return Features(empty(images, rows), tuple(empty(images, rows) for _ in layers))

    def hidden(
        self, embeds: Embeds, positions: Int[Array, '3 B T'], segments: Segments | None = None
    ) -> Float[Array, 'B T D']:
        """As Model.hidden."""
        return self.text(embeds[0], positions, segments, added=embeds[1])

    def prefill(
        self, cache: Cache, embeds: Embeds, positions: Int[Array, '3 B T']
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """As Model.prefill."""
        return self.text.prefill(cache, embeds[0], positions, added=embeds[1])

    def extend(
        self,
        cache: Cache,
        embeds: Embeds,
        positions: Int[Array, '3 B T'],
        start: Int[Array, 'B'],
        lengths: Int[Array, 'B'],
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """As Model.extend."""
        return self.text.extend(cache, embeds[0], positions, start, lengths, added=embeds[1])
