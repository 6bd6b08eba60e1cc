"""Writes a model of Keras 2 or 3 for Burn: FILE.json has its config, FILE.safetensors its weights, and sample inputs with what Keras
predicts for them.

    pip install tf_keras keras safetensors
    python export.py model.keras         # beside it
    python export.py model.h5 out/model  # another place, without an ending
"""

import importlib, json, os, pathlib, re, sys, zipfile

import h5py
import numpy as np
from safetensors.numpy import save_file

SEED = 0


def library_of(file):
    """The library that can read a file, by the version that wrote it."""
    if zipfile.is_zipfile(file):
        version = json.loads(zipfile.ZipFile(file).read("metadata.json"))["keras_version"]
    else:
        version = str(h5py.File(file).attrs["keras_version"])
    return importlib.import_module("keras" if version.startswith("3.") else "tf_keras")


def weights_of(model, path=""):
    """Every weight as `layer/kernel`, in a model within the model `tower/layer/kernel`."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from weights_of(layer, f"{path}{layer.name}/")
        else:
            for weight, values in zip(layer.weights, layer.get_weights()):
                yield f"{path}{layer.name}/{weight.name.split('/')[-1].split(':')[0]}", values


def export(file, to):
    keras = library_of(file)
    model = keras.models.load_model(file, compile=False)
    config = json.loads(model.to_json()) | {"keras_version": keras.__version__}

    # Where there is an Embedding the samples are ids that each of them has, else normal numbers. Unknown sizes are 5.
    random = np.random.default_rng(SEED)
    ids = [int(size) for size in re.findall(r'"input_dim": (\d+)', model.to_json())]
    draw = (lambda shape: random.integers(0, min(ids), shape)) if ids else random.standard_normal
    samples = [draw([size or 5 for size in tensor.shape]).astype(getattr(tensor.dtype, "name", tensor.dtype)) for tensor in model.inputs]
    predictions = model.predict(samples, verbose=0)
    predictions = predictions if isinstance(predictions, list) else [predictions]

    tensors = dict(weights_of(model))
    tensors |= {f"input/{i}": values for i, values in enumerate(samples)}
    tensors |= {f"prediction/{i}": values for i, values in enumerate(predictions)}
    to = pathlib.Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    # Both files are complete before either takes its name.
    save_file(tensors, f"{to}.safetensors.part", {"keras_version": keras.__version__})
    pathlib.Path(f"{to}.json.part").write_text(json.dumps(config) + "\n")
    for ending in ("safetensors", "json"):
        os.replace(f"{to}.{ending}.part", f"{to}.{ending}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        export(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else os.path.splitext(sys.argv[1])[0])
    except Exception as error:
        sys.exit(f"error: cannot export {sys.argv[1]}: {error}")
