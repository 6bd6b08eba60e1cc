"""Writes models/: five small models, saved by Keras 3 and by tf_keras, and exported by export.py. Each is saved as .keras and as .h5,
of which the same files must come. Also writes the configs that tests/suite/from_keras.rs looks for products in, to tests/fixtures/.

    python -m venv /tmp/venv && /tmp/venv/bin/pip install -r examples/keras/requirements.txt
    /tmp/venv/bin/python examples/keras/models.py           # to models/ and tests/fixtures/
    /tmp/venv/bin/python examples/keras/models.py FOLDER    # all to another place

The versions that answered are in each file, under "keras_version".
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
import keras
import tf_keras

from export import export
from tf_keras.protobuf import saved_metadata_pb2

HERE = pathlib.Path(__file__).resolve().parent
MODELS, FIXTURES = (pathlib.Path(sys.argv[1]),) * 2 if len(sys.argv) > 1 else (HERE / "models", HERE.parents[1] / "tests" / "fixtures")
UNIFORM = {"class_name": "RandomUniform", "config": {"minval": -1.0, "maxval": 1.0}}
DRAWN = {"kernel_initializer": UNIFORM, "bias_initializer": UNIFORM}  # A bias of zeros would prove nothing.


def dense_dot(k):
    """The second example of the documentation of Dot."""
    x, y = k.Input((2,), name="x"), k.Input((2,), name="y")
    dense = [k.layers.Dense(8, name=name, **DRAWN)(input) for name, input in (("left", x), ("right", y))]
    return k.Model([x, y], k.layers.Dot(axes=1, name="score")(dense))


def pair(k):
    x, y = k.Input((5, 3), name="x"), k.Input((6, 5), name="y")
    dense = k.layers.Dense(4, activation="relu", name="dense", **DRAWN)(x)
    return k.Model([x, y], k.layers.Dot(axes=(1, 2), name="pair")([dense, y]))


def cosine(k):
    """One model for both inputs, and two outputs, one of them a model's."""
    input = k.Input((3,))
    tower = k.Model(input, k.layers.Dense(7, activation="tanh", name="dense", **DRAWN)(input), name="tower")
    pair = [k.Input((7,)), k.Input((7,))]
    head = k.Model(pair, k.layers.Dot(axes=1, name="plain")(pair), name="head")
    x, y = k.Input((3,), name="x"), k.Input((3,), name="y")
    both = [tower(x), tower(y)]
    return k.Model([x, y], [k.layers.Dot(axes=-1, normalize=True, name="cosine")(both), head(both)])


def towers(k):
    """Ids of users and items, a tower for each, one of them Sequential, and the score through a sigmoid."""
    user, item = k.Input((1,), name="user_id", dtype="int32"), k.Input((1,), name="item_id")
    id = k.Input((1,), dtype="int32")
    flat = k.layers.Flatten(name="flat")(k.layers.Embedding(11, 8, UNIFORM, name="embedding")(id))
    users = k.Model(id, k.layers.Dense(6, name="dense", **DRAWN)(flat), name="users")
    items = k.Sequential(
        [k.Input((1,)), k.layers.Embedding(13, 8, UNIFORM, name="embedding"), k.layers.Reshape((8,), name="flat"), k.layers.Dense(6, name="dense", **DRAWN)],
        name="items",
    )
    dot = k.layers.Dot(axes=1, normalize=True, name="cosine")([users(user), items(item)])
    return k.Model([user, item], k.layers.Dense(1, activation="sigmoid", name="probability", **DRAWN)(dot))


def rank_4(k):
    x, y = k.Input((3, 4, 5), name="x"), k.Input((3, 2, 6), name="y")
    dense = k.layers.Dense(5, activation="softmax", name="dense", **DRAWN)(y)
    return k.Model([x, y], k.layers.Dot(axes=(3, 3), name="dot")([x, dense]))


def subclass(k):
    """A model that lists its layers in its config, as it likes."""

    class Scores(k.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.dots = [k.layers.Dot(axes=(1, 2), name="first"), k.layers.Dot(axes=1, normalize=True, name="second")]
            self.each = k.layers.TimeDistributed(k.layers.Dense(2), name="each")

        def get_config(self):
            serialize = k.layers.serialize
            return {"name": "scores", "each": serialize(self.each), "dots": tuple(serialize(dot) for dot in self.dots)}

    return Scores(name="scores")


def main():
    for name, k in (("keras", keras), ("tf_keras", tf_keras)):
        for make in (dense_dot, pair, cosine, towers, rank_4):
            k.utils.set_random_seed(20_050_106)
            model = make(k)
            with tempfile.TemporaryDirectory() as folder:
                exports = {"keras": f"{MODELS}/{name}_{make.__name__}", "h5": f"{folder}/exported"}
                for ending, to in exports.items():
                    model.save(f"{folder}/model.{ending}")
                    export(f"{folder}/model.{ending}", to)
                for ending in ("json", "safetensors"):
                    keras_file, h5_file = [pathlib.Path(f"{to}.{ending}").read_bytes() for to in exports.values()]
                    assert keras_file == h5_file, f"{name} {make.__name__}.{ending} depends on the format"
        (FIXTURES / f"{name}_subclass_model.json").write_text(subclass(k).to_json() + "\n")
    with tempfile.TemporaryDirectory() as folder:
        towers(tf_keras).save(folder, save_format="tf")
        metadata = saved_metadata_pb2.SavedMetadata.FromString(pathlib.Path(folder, "keras_metadata.pb").read_bytes())
        (FIXTURES / "tf_keras_saved_model.json").write_text(json.dumps(json.loads(metadata.nodes[0].metadata)) + "\n")


if __name__ == "__main__":
    main()
