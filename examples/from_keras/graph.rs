//! What a Keras model computes, read from its config: numbered values, without tensors.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, bail, ensure};
use burn_dot::{Dot, DotConfig, dots_of};
use serde_json::{Number, Value};

/// The steps of a model in the order of their computation. The value numbered `i` is what step `i` gives.
#[derive(Debug, Default)]
pub struct Graph {
    pub steps: Vec<Step>,
    /// Numbers of the values that the model is given, and gives.
    pub inputs: Vec<usize>,
    pub outputs: Vec<usize>,
    /// What has weights: a layer that is called twice stands here once.
    pub dense: Vec<Dense>,
    pub embeddings: Vec<Embedding>,
}

#[derive(Debug)]
pub struct Step {
    /// The layer, within another model `tower/layer`.
    pub layer: String,
    pub operation: Operation,
    pub inputs: Vec<usize>,
    pub shape: Shape,
}

/// Sizes with the batch, `None` where they are unknown.
type Shape = Vec<Option<usize>>;

#[derive(Debug)]
pub enum Operation {
    Input,
    /// By the number of the weights.
    Dense(usize, Activation),
    Embedding(usize),
    Activation(Activation),
    /// The sizes after the batch; −1 is what is left.
    Reshape(Vec<i64>),
    Dot(Dot),
}

#[derive(Clone, Copy, Debug)]
pub enum Activation {
    Linear,
    Relu,
    Sigmoid,
    Softmax,
    Tanh,
}

/// A Dense layer's weights: `(inputs, units)`, and a bias of `units`.
#[derive(Debug, PartialEq)]
pub struct Dense {
    pub layer: String,
    pub inputs: usize,
    pub units: usize,
    pub bias: bool,
}

/// An Embedding's weights: `(ids, size)`.
#[derive(Debug, PartialEq)]
pub struct Embedding {
    pub layer: String,
    pub ids: usize,
    pub size: usize,
}

impl Graph {
    /// Reads `model.to_json()`.
    pub fn read(json: &str) -> Result<Self> {
        let dots = dots_of(json)?.into_iter().collect();
        let mut reader = Reader { dots, graph: Graph::default() };
        reader.graph.outputs = reader.model(&serde_json::from_str(json)?, "", None)?;
        Ok(reader.graph)
    }
}

struct Reader {
    dots: BTreeMap<String, DotConfig>,
    graph: Graph,
}

/// A Functional model while it is read.
struct Functional<'a> {
    path: &'a str,
    layers: BTreeMap<&'a str, &'a Value>,
    /// What each call of a layer gives; nothing yet while its inputs are looked for.
    calls: BTreeMap<(&'a str, usize), Option<Vec<usize>>>,
}

impl Reader {
    /// Adds the steps of a model, and gives its outputs. The outermost model has no `inputs`: they become steps.
    fn model(&mut self, model: &Value, path: &str, inputs: Option<&[usize]>) -> Result<Vec<usize>> {
        match text(model, "class_name")? {
            "Functional" | "Model" => self.functional(&model["config"], path, inputs),
            "Sequential" => self.sequential(&model["config"], path, inputs),
            class => bail!("the model is a {class}; Functional and Sequential models are read here"),
        }
    }

    fn sequential(&mut self, config: &Value, path: &str, inputs: Option<&[usize]>) -> Result<Vec<usize>> {
        let layers = list(config, "layers")?;
        let mut values = match (inputs, layers.first()) {
            (Some(inputs), _) => inputs.to_vec(),
            (None, Some(first)) => vec![self.input(first, &config["build_input_shape"])?],
            (None, None) => bail!("the model has no layers"),
        };
        for layer in layers.iter().filter(|layer| layer["class_name"] != "InputLayer") {
            values = self.layer(layer, path, values)?;
        }
        Ok(values)
    }

    fn functional(&mut self, config: &Value, path: &str, inputs: Option<&[usize]>) -> Result<Vec<usize>> {
        let mut layers = BTreeMap::new();
        for layer in list(config, "layers")? {
            layers.insert(name(layer)?, layer);
        }
        let mut model = Functional { path, layers, calls: BTreeMap::new() };
        for (i, reference) in references(&config["input_layers"]).into_iter().enumerate() {
            let value = match inputs {
                Some(inputs) => *inputs.get(i).with_context(|| format!("the model {path:?} is called with too few inputs"))?,
                None => {
                    let layer = model.layers.get(reference.layer).with_context(|| format!("there is no {reference}"))?;
                    self.input(layer, &Value::Null)?
                }
            };
            model.calls.insert((reference.layer, 0), Some(vec![value]));
        }
        references(&config["output_layers"]).iter().map(|reference| self.value(&mut model, reference)).collect()
    }

    /// The value that a reference means, and before it all that it is made of.
    fn value<'a>(&mut self, model: &mut Functional<'a>, reference: &Reference<'a>) -> Result<usize> {
        let layer = *model.layers.get(reference.layer).with_context(|| format!("there is no {reference}"))?;
        let call =
            reference.call.checked_sub(reference.first_call(layer)).with_context(|| format!("there is no {reference}"))?;
        let key = (reference.layer, call);
        if !model.calls.contains_key(&key) {
            model.calls.insert(key, None);
            let inputs = list(layer, "inbound_nodes")?.get(call).with_context(|| format!("there is no {reference}"))?;
            let inputs = references(inputs).iter().map(|input| self.value(model, input)).collect::<Result<_>>()?;
            model.calls.insert(key, Some(self.layer(layer, model.path, inputs)?));
        }
        let outputs = model.calls[&key].as_ref().with_context(|| format!("{reference} is made of itself"))?;
        outputs.get(reference.output).copied().with_context(|| format!("there is no {reference}"))
    }

    /// Adds a call of a layer, or of a model within the model.
    fn layer(&mut self, layer: &Value, path: &str, inputs: Vec<usize>) -> Result<Vec<usize>> {
        let name = format!("{path}{}", name(layer)?);
        match text(layer, "class_name")? {
            "Functional" | "Model" | "Sequential" => self.model(layer, &format!("{name}/"), Some(&inputs)),
            "Dropout" => Ok(inputs), // Only in training.
            _ => {
                let (operation, shape) = self.operation(layer, &name, &inputs).with_context(|| format!("layer {name:?}"))?;
                Ok(vec![self.step(Step { layer: name, operation, inputs, shape })])
            }
        }
    }

    /// Adds an input, of the shape that its layer says, or the model.
    fn input(&mut self, layer: &Value, model: &Value) -> Result<usize> {
        let (layer, config) = (name(layer)?.to_string(), &layer["config"]);
        let shape = [&config["batch_shape"], &config["batch_input_shape"], model].into_iter().find_map(Value::as_array);
        let shape = shape.with_context(|| format!("layer {layer:?} does not say the shape of its input"))?;
        let shape = shape.iter().map(|size| size.as_u64().map(|size| size as usize)).collect();
        let value = self.step(Step { layer, operation: Operation::Input, inputs: vec![], shape });
        self.graph.inputs.push(value);
        Ok(value)
    }

    fn step(&mut self, step: Step) -> usize {
        self.graph.steps.push(step);
        self.graph.steps.len() - 1
    }

    /// What a layer does to its inputs, and the shape that comes of it.
    fn operation(&mut self, layer: &Value, name: &str, inputs: &[usize]) -> Result<(Operation, Shape)> {
        let (class, config) = (text(layer, "class_name")?, &layer["config"]);
        let dtype = [&config["dtype"]["config"]["name"], &config["dtype"]].into_iter().find_map(Value::as_str);
        ensure!(matches!(dtype, None | Some("float32")), "it computes in {}; only float32 is read here", dtype.unwrap_or(""));
        let shapes: Vec<&Shape> = inputs.iter().map(|&value| &self.graph.steps[value].shape).collect();
        let &[first, ..] = &*shapes else { bail!("it is called without an input") };
        let ([batch, rest @ ..], [.., last]) = (&**first, &**first) else { bail!("its input has no batch") };
        let with_last = |size: usize| [&first[..first.len() - 1], &[Some(size)]].concat();
        Ok(match class {
            "Dense" => {
                let inputs = last.context("the size of its input's last axis is unknown")?;
                let (units, bias) = (whole(config, "units")?, config["use_bias"].as_bool().unwrap_or(true));
                let (activation, shape) = (Activation::read(config)?, with_last(units));
                let dense = Dense { layer: name.to_string(), inputs, units, bias };
                (Operation::Dense(place(&mut self.graph.dense, dense, |dense| &dense.layer)?, activation), shape)
            }
            "Embedding" => {
                let (ids, size) = (whole(config, "input_dim")?, whole(config, "output_dim")?);
                let (embedding, shape) =
                    (Embedding { layer: name.to_string(), ids, size }, [&first[..], &[Some(size)]].concat());
                (Operation::Embedding(place(&mut self.graph.embeddings, embedding, |embedding| &embedding.layer)?), shape)
            }
            "Activation" => (Operation::Activation(Activation::read(config)?), first.clone()),
            "Flatten" => {
                ensure!(config["data_format"] != "channels_first", "its data_format is channels_first, which is not read here");
                (Operation::Reshape(vec![-1]), vec![*batch, count(rest)])
            }
            "Reshape" => {
                let sizes = list(config, "target_shape")?.iter().map(|size| size.as_i64().context("target_shape has no sizes"));
                let sizes = sizes.collect::<Result<Vec<i64>>>()?;
                let shape = reshaped(count(rest), &sizes)?;
                (Operation::Reshape(sizes), [&[*batch], &*shape].concat())
            }
            "Dot" => {
                let config = self.dots.get(name).context("this Dot is not Keras' own")?;
                let &[lhs, rhs] = &*shapes else { bail!("it has {} inputs; a Dot has two", shapes.len()) };
                (Operation::Dot(config.try_init()?), config.output_shape(lhs, rhs)?)
            }
            class => bail!("{class} is not read here; Dense, Embedding, Flatten, Reshape, Activation, Dropout and Dot are"),
        })
    }
}

impl Activation {
    fn read(config: &Value) -> Result<Self> {
        let activation = &config["activation"];
        Ok(match activation.as_str() {
            None if activation.is_null() => Activation::Linear,
            Some("linear") => Activation::Linear,
            Some("relu") => Activation::Relu,
            Some("sigmoid") => Activation::Sigmoid,
            Some("softmax") => Activation::Softmax,
            Some("tanh") => Activation::Tanh,
            _ => bail!("activation {activation} is not read here; linear, relu, sigmoid, softmax and tanh are"),
        })
    }
}

/// The number of a layer's weights, which may have been called before.
fn place<T: PartialEq>(all: &mut Vec<T>, new: T, layer: impl Fn(&T) -> &str) -> Result<usize> {
    let known = all.iter().position(|known| layer(known) == layer(&new));
    ensure!(known.is_none_or(|i| all[i] == new), "it is called with inputs of different sizes");
    Ok(known.unwrap_or_else(|| {
        all.push(new);
        all.len() - 1
    }))
}

/// How many numbers a shape holds, if that is known.
fn count(shape: &[Option<usize>]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size?))
}

/// The shape of `elements` numbers, if it is known how many they are, where −1 is what is left.
pub fn reshaped(elements: Option<usize>, sizes: &[i64]) -> Result<Shape> {
    let open = sizes.iter().filter(|&&size| size < 0).count();
    let known: Vec<_> = sizes.iter().filter(|&&size| size >= 0).map(|&size| usize::try_from(size).ok()).collect();
    let known = count(&known).unwrap_or(0);
    let fits = elements.is_none_or(|elements| match open {
        0 => elements == known,
        _ => known > 0 && elements % known == 0,
    });
    ensure!(open <= 1 && fits, "target_shape {sizes:?} does not fit its input");
    Ok(sizes.iter().map(|&size| usize::try_from(size).ok().or(elements.map(|elements| elements / known))).collect())
}

// --- Keras' JSON ---------------------------------------------------------------------------------------------------------

/// One output of one call of a layer.
struct Reference<'a> {
    layer: &'a str,
    call: usize,
    output: usize,
    /// Whether it stands in a `keras_history`, where Keras 3 counts all calls from 0.
    is_history: bool,
}

impl Reference<'_> {
    /// The number of a layer's first call. Elsewhere a model that was made of inputs has a call before all others, its making.
    fn first_call(&self, layer: &Value) -> usize {
        let by_keras_2 = || layer["inbound_nodes"][0].is_array();
        match layer["class_name"].as_str() {
            Some("Functional" | "Model") if !self.is_history => 1,
            Some("Sequential") if by_keras_2() => 1,
            _ => 0,
        }
    }
}

impl fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "output {} of call {} of the layer {:?}", self.output, self.call, self.layer)
    }
}

/// Every `[layer, call, output]` in `value`, in which both Keras write it among other things.
fn references(value: &Value) -> Vec<Reference<'_>> {
    fn collect<'a>(value: &'a Value, is_history: bool, found: &mut Vec<Reference<'a>>) {
        match value {
            Value::Array(items) => match &**items {
                [Value::String(layer), Value::Number(call), Value::Number(output), ..] => {
                    let index = |number: &Number| number.as_u64().map_or(usize::MAX, |index| index as usize);
                    found.push(Reference { layer, call: index(call), output: index(output), is_history });
                }
                items => items.iter().for_each(|item| collect(item, is_history, found)),
            },
            Value::Object(entries) => entries.iter().for_each(|(key, value)| collect(value, key == "keras_history", found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(value, false, &mut found);
    found
}

fn name(layer: &Value) -> Result<&str> {
    text(&layer["config"], "name").or_else(|_| text(layer, "name"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("the config has no {key} where one is needed"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    Ok(value[key].as_array().with_context(|| format!("the config has no {key} where one is needed"))?)
}

fn whole(config: &Value, key: &str) -> Result<usize> {
    let number = config[key].as_u64().and_then(|number| usize::try_from(number).ok());
    number.with_context(|| format!("{key} is {}; it must be a whole number", config[key]))
}
