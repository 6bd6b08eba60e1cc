//! A Keras model in Burn: its weights in Burn's layers, loaded by Burn's store, and its steps on tensors.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, activation::*};
use burn_dot::Dot;
use burn_store::{KeyRemapper, ModuleSnapshot, ModuleStore, SafetensorsStore, bridge};

use super::graph::{Activation, Graph, Operation, Step, reshaped};

/// The layers with weights, by the numbers that the graph gives them.
#[derive(Module, Debug)]
pub struct Weights {
    dense: Vec<Linear>,
    embeddings: Vec<Embedding>,
}

/// What `examples/keras/export.py` wrote: a model, sample inputs, and what Keras predicted for them.
pub struct Exported {
    pub graph: Graph,
    pub keras_version: String,
    pub inputs: Vec<TensorData>,
    pub predictions: Vec<TensorData>,
    weights: Weights,
}

impl Exported {
    /// Reads `FILE.json` and `FILE.safetensors`, by either name.
    pub fn read(file: &Path, device: &Device) -> Result<Self> {
        let json = file.with_extension("json");
        let read = || {
            let text = fs::read_to_string(&json)?;
            let version = serde_json::from_str::<serde_json::Value>(&text)?["keras_version"].as_str().map(str::to_string);
            Ok::<_, anyhow::Error>((Graph::read(&text)?, version.unwrap_or_else(|| "of unknown version".into())))
        };
        let (graph, keras_version) = read().with_context(|| format!("cannot read {}", json.display()))?;
        let tensors = file.with_extension("safetensors");
        let read = || {
            let mut stored = Stored::open(tensors.clone(), &graph)?;
            let inputs = (0..graph.inputs.len()).map(|i| stored.take(&format!("input/{i}"))).collect::<Result<Vec<_>>>()?;
            let predictions =
                (0..graph.outputs.len()).map(|i| stored.take(&format!("prediction/{i}"))).collect::<Result<_>>()?;
            Ok::<_, anyhow::Error>((stored.weights(&graph, device)?, inputs, predictions))
        };
        let (weights, inputs, predictions) = read().with_context(|| format!("cannot read {}", tensors.display()))?;
        Ok(Exported { graph, keras_version, inputs, predictions, weights })
    }

    /// The model's outputs for the sample inputs.
    pub fn predict(&self, device: &Device) -> Result<Vec<TensorData>> {
        let mut inputs = self.inputs.iter();
        let mut values: Vec<Value> = Vec::new();
        for step in &self.graph.steps {
            let given = step.inputs.iter().map(|&input| values[input].clone()).collect();
            let value = match &step.operation {
                Operation::Input => Value::from_data(inputs.next().expect("one for each input"), step, device),
                operation => self.weights.apply(operation, given),
            };
            values.push(value.with_context(|| format!("layer {:?}", step.layer))?);
        }
        Ok(self.graph.outputs.iter().map(|&output| values[output].clone().into_data()).collect())
    }
}

// --- Weights -------------------------------------------------------------------------------------------------------------

/// A file of weights, under the names that [`Weights`] has for them.
struct Stored {
    store: SafetensorsStore,
    /// What the model needs, by these names: the name in the file, and the shape.
    expected: BTreeMap<String, (String, Vec<usize>)>,
    taken: Vec<String>,
}

impl Stored {
    fn open(file: PathBuf, graph: &Graph) -> Result<Self> {
        let mut expected = BTreeMap::new();
        let mut expect = |name: String, weight: String, shape: &[usize]| expected.insert(name, (weight, shape.to_vec()));
        for (i, dense) in graph.dense.iter().enumerate() {
            // A kernel has Burn's layout: nothing is transposed.
            expect(format!("dense.{i}.weight"), format!("{}/kernel", dense.layer), &[dense.inputs, dense.units]);
            if dense.bias {
                expect(format!("dense.{i}.bias"), format!("{}/bias", dense.layer), &[dense.units]);
            }
        }
        for (i, embedding) in graph.embeddings.iter().enumerate() {
            let (weight, shape) = (format!("{}/embeddings", embedding.layer), [embedding.ids, embedding.size]);
            expect(format!("embeddings.{i}.weight"), weight, &shape);
        }
        let mut names = KeyRemapper::new();
        for (name, (weight, _)) in &expected {
            let pattern = names.add_pattern(format!("^{}$", escaped(weight)), name);
            names = pattern.map_err(|error| anyhow!("{weight:?} cannot be looked for: {error}"))?;
        }
        Ok(Stored { store: SafetensorsStore::from_file(file).remap(names), expected, taken: Vec::new() })
    }

    /// A tensor that is no weight.
    fn take(&mut self, name: &str) -> Result<TensorData> {
        let tensor = self.store.get_tensor(name)?.with_context(|| format!("it has no {name}; export the model again"))?;
        self.taken.push(name.to_string());
        Ok(bridge::to_data(tensor)?)
    }

    /// Loads the weights, which must be those of the model, no fewer and no more.
    fn weights(mut self, graph: &Graph, device: &Device) -> Result<Weights> {
        for (name, (weight, shape)) in &self.expected {
            let tensor = self.store.get_tensor(name)?.with_context(|| format!("it has no {weight}; export the model again"))?;
            let stored = tensor.shape.to_vec();
            ensure!(stored == *shape, "{weight} has shape {stored:?}, but its layer's config says {shape:?}");
            ensure!(tensor.dtype == DType::F32, "{weight} is {:?}; only float32 is read here", tensor.dtype);
        }
        let zeros = || Initializer::Zeros; // Drawn numbers would only be written over.
        let dense = graph.dense.iter().map(|dense| {
            let linear = LinearConfig::new(dense.inputs, dense.units).with_bias(dense.bias);
            linear.with_initializer(zeros()).init(device)
        });
        let embeddings = graph
            .embeddings
            .iter()
            .map(|embedding| EmbeddingConfig::new(embedding.ids, embedding.size).with_initializer(zeros()).init(device));
        let mut weights = Weights { dense: dense.collect(), embeddings: embeddings.collect() };
        let applied = weights.load_from(&mut self.store)?;
        if let Some(unused) = applied.unused.iter().find(|name| !self.taken.contains(name)) {
            bail!("its {unused} belongs to no layer that is read here");
        }
        Ok(weights)
    }
}

/// A name as a regular expression that matches it alone.
fn escaped(name: &str) -> String {
    name.chars().flat_map(|c| (c.is_ascii_punctuation() && !"<>".contains(c)).then_some('\\').into_iter().chain([c])).collect()
}

// --- Values --------------------------------------------------------------------------------------------------------------

/// Keras' layers take any rank, and Burn's tensors have theirs in their type: a value is kept flat, beside its shape.
#[derive(Clone)]
struct Value {
    numbers: Numbers,
    shape: Vec<usize>,
}

#[derive(Clone)]
enum Numbers {
    Float(Tensor<1>),
    Int(Tensor<1, Int>),
}

impl Value {
    fn from_data(data: &TensorData, step: &Step, device: &Device) -> Result<Self> {
        let shape = data.shape().to_vec();
        let fits = shape.len() == step.shape.len()
            && step.shape.iter().zip(&shape).all(|(said, &size)| said.is_none_or(|said| said == size));
        ensure!(fits, "the sample has shape {shape:?}, but the config says {:?}", step.shape);
        let numbers = match data.dtype() {
            DType::F32 => Numbers::Float(Tensor::from_data(&*data.iter::<f32>().collect::<Vec<_>>(), (device, DType::F32))),
            DType::I32 | DType::I64 => {
                Numbers::Int(Tensor::from_data(&*data.iter::<i32>().collect::<Vec<_>>(), (device, DType::I32)))
            }
            dtype => bail!("the sample is {dtype:?}; only float32, int32 and int64 are read here"),
        };
        Ok(Value { numbers, shape })
    }

    fn into_data(self) -> TensorData {
        let shape = self.shape.clone();
        TensorData::new(self.float().into_data().iter::<f32>().collect::<Vec<_>>(), shape)
    }

    /// The value that a tensor holds.
    fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        Value { numbers: Numbers::Float(tensor.flatten(0, D - 1)), shape }
    }

    fn float(self) -> Tensor<1> {
        match self.numbers {
            Numbers::Float(tensor) => tensor,
            Numbers::Int(tensor) => tensor.float(),
        }
    }

    fn int(self) -> Tensor<1, Int> {
        match self.numbers {
            Numbers::Float(tensor) => tensor.int(),
            Numbers::Int(tensor) => tensor,
        }
    }

    /// Its tensor, whose rank is `D`.
    fn ranked<const D: usize>(self) -> Tensor<D> {
        let shape: [usize; D] = self.shape.clone().try_into().expect("the caller looked at the rank");
        self.float().reshape(shape)
    }

    /// The same numbers in another shape.
    fn reshaped(self, shape: Vec<usize>) -> Self {
        Value { shape, ..self }
    }

    /// Applies a function to the last axis, whose size it may change.
    fn map_rows(self, map: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let (last, outer) = self.shape.split_last().expect("a value has a batch");
        let (rows, outer) = ([outer.iter().product(), *last], outer.to_vec());
        let rows = map(self.float().reshape(rows));
        let shape = [&*outer, &[rows.dims()[1]]].concat();
        Value::of(rows).reshaped(shape)
    }
}

impl Weights {
    fn apply(&self, operation: &Operation, inputs: Vec<Value>) -> Result<Value> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("the graph has looked at the inputs");
        Ok(match operation {
            Operation::Input => bail!("the model has no such input"),
            Operation::Dense(i, activation) => next().map_rows(|rows| activate(*activation, self.dense[*i].forward(rows))),
            Operation::Embedding(i) => embed(&self.embeddings[*i], next())?,
            Operation::Activation(activation) => next().map_rows(|rows| activate(*activation, rows)),
            Operation::Reshape(sizes) => {
                let value = next();
                let (batch, rest) = value.shape.split_first().expect("a value has a batch");
                let sizes = reshaped(Some(rest.iter().product()), sizes)?;
                let shape = [Some(*batch)].into_iter().chain(sizes).flatten().collect();
                value.reshaped(shape)
            }
            Operation::Dot(dot) => multiply(dot, next(), next())?,
        })
    }
}

fn activate(activation: Activation, rows: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Linear => rows,
        Activation::Relu => relu(rows),
        Activation::Sigmoid => sigmoid(rows),
        Activation::Softmax => softmax(rows, 1),
        Activation::Tanh => tanh(rows),
    }
}

fn embed(embedding: &Embedding, ids: Value) -> Result<Value> {
    let [count, size] = embedding.weight.dims();
    let shape = [&*ids.shape, &[size]].concat();
    let ids = ids.int();
    if let Some(id) = ids.to_data().iter::<i64>().find(|&id| id < 0 || id as usize >= count) {
        bail!("id {id} is asked for, but there are {count}, from 0 on");
    }
    Ok(Value::of(embedding.forward(ids.unsqueeze())).reshaped(shape))
}

/// The product of two values: the one place where ranks must be known.
fn multiply(dot: &Dot, lhs: Value, rhs: Value) -> Result<Value> {
    match (lhs.shape.len(), rhs.shape.len()) {
        (2, 2) => multiply_ranked::<2, 2, 2>(dot, lhs, rhs),
        (2, 3) => multiply_ranked::<2, 3, 2>(dot, lhs, rhs),
        (2, 4) => multiply_ranked::<2, 4, 3>(dot, lhs, rhs),
        (3, 2) => multiply_ranked::<3, 2, 2>(dot, lhs, rhs),
        (3, 3) => multiply_ranked::<3, 3, 3>(dot, lhs, rhs),
        (3, 4) => multiply_ranked::<3, 4, 4>(dot, lhs, rhs),
        (4, 2) => multiply_ranked::<4, 2, 3>(dot, lhs, rhs),
        (4, 3) => multiply_ranked::<4, 3, 4>(dot, lhs, rhs),
        (4, 4) => multiply_ranked::<4, 4, 5>(dot, lhs, rhs),
        (lhs, rhs) => bail!("its inputs have ranks {lhs} and {rhs}; ranks 2 to 4 are read here"),
    }
}

fn multiply_ranked<const L: usize, const R: usize, const O: usize>(dot: &Dot, lhs: Value, rhs: Value) -> Result<Value> {
    let product: Tensor<O> = dot.try_forward(lhs.ranked::<L>(), rhs.ranked::<R>())?;
    Ok(Value::of(product))
}

/// The largest difference of two tensors of floats.
pub fn difference(ours: &TensorData, theirs: &TensorData) -> Result<f64> {
    ensure!(ours.shape() == theirs.shape(), "the output has shape {:?}, and Keras' {:?}", ours.shape(), theirs.shape());
    let pairs = ours.iter::<f64>().zip(theirs.iter::<f64>());
    // Of NaN and a number the difference is NaN, which is the largest.
    Ok(pairs
        .map(|(a, b)| if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() })
        .max_by(f64::total_cmp)
        .unwrap_or(0.0))
}
