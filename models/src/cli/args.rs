//! The arguments of the command.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use burn_nvfp4::recipe::{RecipeError, presets};
use clap::{Args, Parser, Subcommand, ValueEnum};

use burn_nvfp4_models::hybrid::step_memory::Recompute;
use burn_nvfp4_models::train::config::{
    Activations, BackendName, ModelSource, ParallelConfig, TrainConfig,
};
use burn_nvfp4_models::train::data::ValidationData;

/// Trains hybrid Mamba-Transformer models in NVFP4, lets them write, and serves their weights in
/// 4 bits.
#[derive(Debug, Parser)]
#[command(name = "nvfp4", version)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pretrain a hybrid model. Without arguments: a 1 M-parameter model on the Rust sources of the
    /// locked dependencies, in about three minutes on two cores.
    ///
    /// Ctrl-C saves a checkpoint and exits with code 130; a second one exits at once.
    Train(Box<TrainArgs>),
    /// List the runs of a folder: state, steps, loss, lowest validation loss, recipe, age.
    Runs(RunsArgs),
    /// Train the same model on the same data, order and seeds under a list of recipes, and say how
    /// far each lies from the reference.
    ///
    /// The same command goes on where it was stopped. Ctrl-C stops as in `train`. Two processes may
    /// work on one study: each takes runs that no other one has.
    Compare(CompareArgs),
    /// Write one HTML page about a run, or about a study that `compare` made: losses, gaps, what
    /// quantization does to each layer, which routine multiplied what, speed, memory. It opens
    /// without a network.
    Report(ReportArgs),
    /// Tokenise texts of any size into a folder that `train` reads, on all cores.
    ///
    /// Interrupted, the same command goes on behind the last whole shard.
    Tokenize(TokenizeArgs),
    /// Continue a text with a Hugging Face checkpoint. The text goes to stdout as it comes.
    Generate(Box<GenerateArgs>),
    /// Put the linear weights of a Hugging Face directory, of any architecture, into NVFP4 for
    /// inference servers.
    Quantize(Box<QuantizeArgs>),
    /// Write the values of a directory in NVFP4 as floats again.
    Dequantize(DequantizeArgs),
    /// Write a checkpoint of a training run as a Hugging Face directory: in NVFP4 the weights that
    /// its forward multiplies, or everything as floats.
    Export(Box<ExportArgs>),
    /// List the tensors of a Hugging Face directory with what 4 bits do, or would do, to each; or
    /// what a run measured of its operands, and which GEMM ran where.
    Inspect(Box<InspectArgs>),
    /// Measure how well a Hugging Face checkpoint answers, in the formats of lm-evaluation-harness.
    ///
    /// Nothing is fetched and nothing that the model writes is run.
    Eval(Box<EvalArgs>),
}

/// What one document of a text file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocumentsName {
    /// The whole file.
    File,
    /// What lies between blank lines.
    BlankLine,
}

/// Arguments of `nvfp4 tokenize`.
#[derive(Clone, Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "two flags that exclude each other"
)]
pub(crate) struct TokenizeArgs {
    /// Files, folders, or patterns with `*` and `**`. The name says what a file is: .jsonl and
    /// .ndjson, .parquet, all else text; text and jsonl may be packed as .gz or .zst.
    #[arg(value_name = "INPUT", required_unless_present = "verify")]
    pub(crate) inputs: Vec<PathBuf>,
    /// A Hugging Face tokenizer.json, or `bytes` where every byte is a token.
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Folder for the shards.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What one document of a text file is.
    #[arg(long, value_enum, default_value_t = DocumentsName::File)]
    pub(crate) documents: DocumentsName,
    /// Documents of a text file end with this mark instead; `\n` is a line end.
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "documents",
        allow_hyphen_values = true
    )]
    pub(crate) separator: Option<String>,
    /// Field of a jsonl object, or column of a parquet file, that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub(crate) field: String,
    /// A shard closes behind the document that reaches this many tokens.
    #[arg(long, value_name = "N", default_value = "268435456")]
    pub(crate) shard_tokens: NonZeroU64,
    /// Threads that encode; all cores if absent.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Replace tokens of other inputs.
    #[arg(long)]
    pub(crate) force: bool,
    /// Only read the folder and check every checksum.
    #[arg(long, conflicts_with_all = ["inputs", "tokenizer", "force"])]
    pub(crate) verify: bool,
}

/// Names and configuration of a served directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    /// NVIDIA Model Optimizer's: vLLM, TensorRT-LLM, SGLang.
    Modelopt,
    /// compressed-tensors': vLLM, transformers.
    CompressedTensors,
}

/// What a run is exported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportName {
    /// NVFP4 in NVIDIA Model Optimizer's layout: vLLM, TensorRT-LLM, SGLang.
    Modelopt,
    /// NVFP4 in compressed-tensors' layout: vLLM, transformers.
    CompressedTensors,
    /// Floats: transformers, and every command here that takes a model.
    HighPrecision,
}

/// Whose arithmetic rounds the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuleName {
    /// TransformerEngine's, blocks of 1x16: what training and `generate` quantize with.
    TransformerEngine,
    /// The better of two scales for each block.
    FourOverSix,
    /// NVIDIA Model Optimizer's, bit for bit.
    Modelopt,
}

/// Dtype of numbers that are not in 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatName {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
}

/// Which weights stay as they are.
#[derive(Clone, Debug, Args)]
pub(crate) struct SelectionArgs {
    /// A module to keep as it is; `*` matches any characters, dots too. Repeatable.
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// Keep only what --exclude names, and not also lm_head, embeddings, norms and routers.
    #[arg(long)]
    pub(crate) no_default_excludes: bool,
}

/// Arguments of `nvfp4 quantize`.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Folder with config.json and safetensors files in 16 or 32 bits.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// Folder to write.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Whose tensor names and configuration.
    #[arg(long, value_enum, default_value_t = FormatName::Modelopt)]
    pub(crate) format: FormatName,
    /// Whose arithmetic.
    #[arg(long, value_enum, default_value_t = RuleName::TransformerEngine)]
    pub(crate) rule: RuleName,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// Replace OUT if it is a checkpoint.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `nvfp4 dequantize`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DequantizeArgs {
    /// Folder in NVFP4.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// Folder to write.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Dtype of the values.
    #[arg(long, value_enum, default_value_t = FloatName::Bf16)]
    pub(crate) dtype: FloatName,
    /// Replace OUT if it is a checkpoint.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `nvfp4 export`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportArgs {
    /// Folder of the run.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Folder to write.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value_t = ExportName::Modelopt)]
    pub(crate) format: ExportName,
    /// Dtype of what is not in 4 bits.
    #[arg(long, value_enum, default_value_t = FloatName::Bf16)]
    pub(crate) dtype: FloatName,
    /// The checkpoint of this step instead of the latest.
    #[arg(long, value_name = "STEP")]
    pub(crate) step: Option<u64>,
    /// Replace OUT if it is a checkpoint.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `nvfp4 inspect`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArgs {
    /// Folder with config.json and safetensors files, or the folder of a run.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// The directory that DIR was quantized from: errors are against its weights.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["rule", "exclude", "no_default_excludes"]
    )]
    pub(crate) against: Option<PathBuf>,
    /// Whose arithmetic, for a directory that is not quantized.
    #[arg(long, value_enum, default_value_t = RuleName::TransformerEngine)]
    pub(crate) rule: RuleName,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
}

/// Arguments of `nvfp4 eval`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct EvalArgs {
    /// Something else than evaluating a model.
    #[command(subcommand)]
    pub(crate) command: Option<EvalCommand>,
    /// Folder of the checkpoint: config.json, safetensors files, tokenizer.json.
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) model: Option<PathBuf>,
    /// Tasks by name, separated by commas; an unknown name lists them.
    #[arg(long = "task", value_name = "NAMES", value_delimiter = ',')]
    pub(crate) tasks: Vec<String>,
    /// Folder of the tasks' files, e.g. with piqa/valid.jsonl in it.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// A text, for its bits per byte; can be given several times.
    #[arg(long = "text", value_name = "FILE")]
    pub(crate) texts: Vec<PathBuf>,
    /// Examples before each question, instead of each task's usual number.
    #[arg(long, value_name = "N")]
    pub(crate) shots: Option<usize>,
    /// Only the first items of each subject.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<NonZeroUsize>,
    /// Most tokens of a batch, padding included; 1024 on a CPU backend and 16384 on others.
    #[arg(long, value_name = "N")]
    pub(crate) batch_tokens: Option<NonZeroUsize>,
    /// File for the results, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Replace the file of results if there is one.
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
    /// Another tokenizer.json than the folder's, or `bytes` where every byte is a token.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Recipe of the linear layers, e.g. nvidia; without it they compute in high precision.
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<String>,
    /// Which layers the recipe holds for, e.g. paper.
    #[arg(
        long,
        value_name = "NAME",
        requires = "recipe",
        default_value = "uniform"
    )]
    pub(crate) policy: String,
    /// What runs the tensors.
    #[arg(long, value_enum, default_value_t = BackendName::Ndarray)]
    pub(crate) backend: BackendName,
    /// Which GPU, counted from 0; CPU backends have none.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub(crate) device: usize,
}

/// What to do with results.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Compare two files of results item by item.
    Compare {
        /// Results of one model.
        a: PathBuf,
        /// Results of another one, for the same items.
        b: PathBuf,
    },
}

/// Arguments of `nvfp4 generate`.
#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Folder of the checkpoint: config.json, safetensors files, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The text to continue.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Another tokenizer.json than the folder's, or `bytes` where every byte is a token.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Most tokens to add; the model's window may end a text earlier.
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) max_tokens: NonZeroUsize,
    /// Divides the logits; 0 takes the most likely token.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) temperature: f64,
    /// Draw only from this many of the most likely tokens.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<NonZeroUsize>,
    /// Draw only from the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Names the draws: the same seed gives the same text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// What runs the tensors.
    #[arg(long, value_enum, default_value_t = BackendName::Ndarray)]
    pub(crate) backend: BackendName,
    /// Which GPU, counted from 0; CPU backends have none.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub(crate) device: usize,
}

/// Arguments of `nvfp4 runs`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunsArgs {
    /// The folder that holds the folders of the runs.
    #[arg(value_name = "DIR", default_value = "runs")]
    pub(crate) folder: PathBuf,
}

/// Arguments of `nvfp4 compare`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareArgs {
    /// The study (TOML): a base run, seeds, arms.
    #[arg(value_name = "STUDY")]
    pub(crate) study: PathBuf,
    /// Folder of the study; runs/ and its name if absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// A text file, a folder of text files, or a folder that `nvfp4 tokenize` wrote.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// A Hugging Face tokenizer.json.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// What runs the tensors.
    #[arg(long, value_enum)]
    pub(crate) backend: Option<BackendName>,
    /// Which GPU, counted from 0; CPU backends have none.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub(crate) device: usize,
    /// Train only this arm; `*` matches any characters. Repeatable.
    #[arg(long, value_name = "ARM")]
    pub(crate) only: Vec<String>,
    /// Train only these of the study's seeds, separated by commas.
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    pub(crate) seeds: Vec<u64>,
    /// Train nothing; make the outcome of the runs that are there.
    #[arg(long, conflicts_with_all = ["only", "seeds", "data", "tokenizer", "backend"])]
    pub(crate) table: bool,
    /// Show gaps to this arm instead of the study's reference; files stay as they are.
    #[arg(long, value_name = "ARM", requires = "table")]
    pub(crate) against: Option<String>,
    /// Steps between lines; a tenth of the run if absent.
    #[arg(long, value_name = "N")]
    pub(crate) log_every: Option<NonZeroUsize>,
}

/// Arguments of `nvfp4 report`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReportArgs {
    /// Folder of a run, or of a study.
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// Folder of another run, whose losses this one's are compared with.
    #[arg(long, value_name = "RUN")]
    pub(crate) against: Option<PathBuf>,
    /// File to write; report.html in FOLDER if absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// Arguments of `nvfp4 train`; each overrides one field of the configuration.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TrainArgs {
    /// Configuration of the run (TOML); without it the built-in configs/default.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A text file, a folder of text files, or a folder that `nvfp4 tokenize` wrote.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// A Hugging Face tokenizer.json instead of bytes.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Validate on this share of a folder of tokens, at its end.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) hold_out: Option<f64>,
    /// Model size by name, e.g. tiny-1m.
    #[arg(long, value_name = "PRESET", conflicts_with = "model_config")]
    pub(crate) model: Option<String>,
    /// Model dimensions from a Hugging Face config.json.
    #[arg(long, value_name = "FILE")]
    pub(crate) model_config: Option<PathBuf>,
    /// Recipe of the quantized layers, e.g. nvidia, or high_precision for none.
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<String>,
    /// Which layers are quantized, e.g. paper.
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: Option<String>,
    /// What runs the tensors.
    #[arg(long, value_enum)]
    pub(crate) backend: Option<BackendName>,
    /// Dtype of the activations; parameters stay f32.
    #[arg(long, value_enum)]
    pub(crate) activations: Option<Activations>,
    /// What backward computes again instead of keeping it: less memory, more time, the same
    /// numbers.
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        num_args = 0..=1,
        default_missing_value = "blocks"
    )]
    pub(crate) recompute: Option<Recompute>,
    /// Tokens that go through lm_head and the loss at a time: less memory where vocabularies are
    /// large.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) loss_chunk: Option<NonZeroUsize>,
    /// Which GPU, counted from 0; CPU backends have none. One, whatever the configuration says.
    #[arg(long, value_name = "INDEX", conflicts_with = "devices")]
    pub(crate) device: Option<usize>,
    /// GPUs that train together, e.g. 0,1: each takes an equal share of every step. In builds with
    /// the features cuda and distributed.
    #[arg(long, value_name = "INDEX,..", value_delimiter = ',')]
    pub(crate) devices: Option<Vec<usize>>,
    /// Optimizer steps.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Sequences in a micro-batch.
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<NonZeroUsize>,
    /// Tokens in a sequence.
    #[arg(long, value_name = "N")]
    pub(crate) seq_len: Option<NonZeroUsize>,
    /// Micro-batches whose gradients are averaged into one step.
    #[arg(long, value_name = "N")]
    pub(crate) accumulate: Option<NonZeroUsize>,
    /// Peak learning rate; the last one keeps its ratio to it.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// Seed of initial values, data order and random rounding.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Steps between validations.
    #[arg(long, value_name = "N")]
    pub(crate) eval_every: Option<u64>,
    /// Steps between checkpoints.
    #[arg(long, value_name = "N")]
    pub(crate) save_every: Option<u64>,
    /// What the device could do, in TFLOP/s, for the model FLOP utilisation (else that of the data
    /// sheet, for bf16 on common NVIDIA GPUs).
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) peak_tflops: Option<f64>,
    /// Steps between measurements of what quantization does to each layer, in log.jsonl and as
    /// metrics.
    #[arg(long, value_name = "N")]
    pub(crate) statistics_every: Option<NonZeroU64>,
    /// Directory of the run; runs/ and the name in the configuration if absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in its directory from the latest intact checkpoint, or from that of a step;
    /// a run that came to no checkpoint begins again.
    #[arg(long, value_name = "STEP", num_args = 0..=1, require_equals = true)]
    pub(crate) resume: Option<Option<u64>>,
    /// Plain lines instead of the full-screen display.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Steps between plain lines.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) log_every: usize,
}

impl TrainArgs {
    /// Puts the given arguments into a configuration.
    ///
    /// # Errors
    /// A recipe that there is not.
    pub(crate) fn apply(&self, config: &mut TrainConfig) -> Result<(), RecipeError> {
        fn set<T: Clone>(field: &mut T, argument: &Option<T>) {
            if let Some(value) = argument {
                field.clone_from(value);
            }
        }
        if let Some(preset) = &self.model {
            config.model = ModelSource::Preset(preset.clone());
        }
        if let Some(path) = &self.model_config {
            config.model = ModelSource::Config(path.clone());
        }
        if let Some(path) = &self.data {
            config.data.replace(path);
        }
        if let Some(share) = self.hold_out {
            config.data.validation = Some(ValidationData::HoldOut(share));
        }
        if self.tokenizer.is_some() {
            config.data.tokenizer.clone_from(&self.tokenizer);
        }
        if let Some(peak) = self.lr {
            config.schedule.last *= peak / config.schedule.peak;
            config.schedule.peak = peak;
        }
        if let Some(name) = &self.recipe {
            config.precision.recipe = presets::by_name(name)?.recipe;
        }
        if self.peak_tflops.is_some() {
            config.peak_tflops = self.peak_tflops;
        }
        if self.device.is_some() {
            config.parallel = None;
        }
        if let Some(devices) = &self.devices {
            let devices = devices.clone();
            config.parallel = Some(ParallelConfig { devices });
        }
        if self.statistics_every.is_some() {
            config.statistics_every = self.statistics_every;
        }
        set(&mut config.precision.policy, &self.policy);
        set(&mut config.precision.backend, &self.backend);
        set(&mut config.precision.activations, &self.activations);
        set(&mut config.memory.recompute, &self.recompute);
        if self.loss_chunk.is_some() {
            config.memory.loss_chunk = self.loss_chunk;
        }
        set(&mut config.steps, &self.steps);
        set(&mut config.batch.sequences, &self.batch_size);
        set(&mut config.batch.length, &self.seq_len);
        set(&mut config.batch.accumulate, &self.accumulate);
        set(&mut config.seed, &self.seed);
        set(&mut config.validation.every, &self.eval_every);
        set(&mut config.checkpoint.every, &self.save_every);
        Ok(())
    }
}
