"""Steering vectors: the value, its extraction in the Trainer, its file formats.

=========================  ===========================================================================
`SteeringVector`           one direction per layer, with its origin; `from_pairs`, arithmetic, norms, files
`QualityTable`             how good it is at each layer: `SteeringVector.quality`, rows of `LayerQuality`
`ContrastDetector`         extracts one from texts of two classes, and says which layer separates them best
`PairCollator`             makes its batches of pairs of texts; `LabelCollator` of labelled texts
`TraitBaseline`            what the texts of a `TraitMonitor` were in the base model: a table and its file
`read_control_vector`      a control vector of llama.cpp or repeng (GGUF); `write_control_vector`
`from_steering_vectors`    an object of the package steering-vectors; `to_steering_vectors`
`read_persona_vector`      a ``.pt`` file of persona_vectors, a row for each block
`from_neuronpedia`         a vector or feature as Neuronpedia's API answers with it, in JSON
`from_sae`                 a feature's decoder row of an autoencoder in SAELens' format
=========================  ===========================================================================

::

    detector = ContrastDetector("block:*")
    trainer = lightning.Trainer(callbacks=[HookCallback(detectors=[detector])])
    trainer.predict(module, DataLoader(pairs, batch_size=8, collate_fn=PairCollator(tokenize)))
    detector.vectors().save("joy.safetensors")
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
