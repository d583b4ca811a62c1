//! `nvfp4 generate`: text from a Hugging Face checkpoint, as it comes.
//!
//! 1. What can be refused without the weights is refused: settings, folder, tokenizer, prompt.
//! 2. The weights, on the backend that was asked for.
//! 3. Token after token. Only text goes to stdout; a line on stderr says why it ended.
//!
//! A text ends at an end-of-text token of the model or the tokenizer, at `--max-tokens`, or where
//! the model's window is full.

use std::io::{ErrorKind, IsTerminal, Write, stdout};
use std::time::Instant;

use burn_hybrid_ops::HybridEngine;
use burn_nvfp4::Nvfp4Engine;

use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::TextStream;
use burn_nvfp4_models::generate::{GenerateError, Generation, Sampling};

use super::args::GenerateArgs;
use super::backend::OnBackend;
use super::model_folder::ModelFolder;
use super::{Failure, Success, backend, report, say};

/// Everything that is known before the weights are read.
struct Request {
    folder: ModelFolder,
    prompt: Vec<u32>,
    /// Most tokens, and what is used up then.
    most: (usize, Stop),
    sampling: Sampling,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// The model said so.
    EndOfText,
    /// `--max-tokens`.
    Limit,
    /// The model's window.
    Window,
    /// Nobody reads stdout any more.
    Unread,
}

/// Runs `nvfp4 generate`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn generate(arguments: &GenerateArgs) -> Result<Success, Failure> {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    sampling.validate().map_err(Failure::usage)?;
    backend::check(arguments.backend, arguments.device)?;
    let request = Request::new(arguments, sampling)?;
    backend::dispatch(arguments.backend, arguments.device, request)
}

impl Request {
    /// Step 1.
    fn new(arguments: &GenerateArgs, sampling: Sampling) -> Result<Self, Failure> {
        let folder = ModelFolder::open(&arguments.model, arguments.tokenizer.as_deref())?;
        if arguments.prompt.is_empty() {
            return Err(Failure::error(GenerateError::EmptyPrompt));
        }
        let prompt = folder.tokenizer.encode_prompt(&arguments.prompt);
        let prompt = prompt.map_err(Failure::error)?;
        let most = most(&prompt, &folder.config, arguments.max_tokens.get())?;
        Ok(Self {
            folder,
            prompt,
            most,
            sampling,
        })
    }
}

/// How many tokens may follow the prompt, and what is used up then.
fn most(prompt: &[u32], config: &HybridConfig, limit: usize) -> Result<(usize, Stop), Failure> {
    let (tokens, window) = (prompt.len(), config.context_len);
    match window.checked_sub(tokens) {
        None => Err(Failure::Error(format!(
            "the prompt has {tokens} tokens, the model's window is {window} \
             (max_position_embeddings)"
        ))),
        // The last token is not read again, so it needs no place in the window.
        Some(left) if left < limit - 1 => Ok((left + 1, Stop::Window)),
        Some(_) => Ok((limit, Stop::Limit)),
    }
}

impl OnBackend for Request {
    /// Steps 2 and 3.
    fn run<E: Nvfp4Engine + HybridEngine>(self, device: E::Device) -> Result<Success, Failure> {
        let model = self.folder.load::<E>(&device)?;
        let start = Instant::now();
        let generation = Generation::start(&model, &[&self.prompt], self.sampling, &device);
        let ids = generation.map_err(Failure::error)?.flatten();
        let mut text = TextStream::after(&self.folder.tokenizer, &self.prompt);
        let ends = self.folder.ends();
        let out = Output::new();
        let (most, used_up) = self.most;
        let (mut count, mut stop) = (0, used_up);
        let mut first = None;
        for id in ids.take(most) {
            count += 1;
            first.get_or_insert_with(Instant::now);
            if ends.contains(&id) {
                stop = Stop::EndOfText;
                break;
            }
            if !out.write(&text.push(id))? {
                stop = Stop::Unread;
                break;
            }
        }
        out.write(&text.finish())?;
        out.write("\n")?;
        let first = first.unwrap_or(start);
        say(&format!(
            "prompt: {} tokens in {:.2} s; text: {count} tokens, {}; {}",
            self.prompt.len(),
            (first - start).as_secs_f64(),
            rate(count, first.elapsed().as_secs_f64()),
            stop.reason(),
        ));
        Ok(Success::Done)
    }
}

/// Tokens per second after the first one, which came with the prompt.
fn rate(count: usize, seconds: f64) -> String {
    if count > 1 && seconds > 0.0 {
        format!("{:.1} tokens/s", (count - 1) as f64 / seconds)
    } else {
        "too few to time".to_owned()
    }
}

impl Stop {
    fn reason(self) -> &'static str {
        match self {
            Self::EndOfText => "ended by the end-of-text token",
            Self::Limit => "ended by --max-tokens",
            Self::Window => "ended because the model's window is full",
            Self::Unread => "ended because stdout was closed",
        }
    }
}

/// stdout, with marks for control characters where a terminal would obey them.
struct Output {
    is_terminal: bool,
}

impl Output {
    fn new() -> Self {
        Self {
            is_terminal: stdout().is_terminal(),
        }
    }

    /// Writes text at once; false if nobody reads it any more.
    fn write(&self, text: &str) -> Result<bool, Failure> {
        let text = if self.is_terminal {
            report::printable(text.as_bytes())
        } else {
            text.to_owned()
        };
        let mut out = stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::Error(format!("stdout: cannot write: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_limits_what_is_read_not_what_is_written() {
        let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
        config.context_len = 10;
        let most = |tokens, limit| match most(&vec![0; tokens], &config, limit) {
            Ok((most, stop)) => format!("{most} {stop:?}"),
            Err(_) => "refused".to_owned(),
        };
        assert_eq!(most(10, 1), "1 Limit");
        assert_eq!(most(10, 2), "1 Window");
        assert_eq!(most(4, 7), "7 Limit");
        assert_eq!(most(4, 8), "7 Window");
        assert_eq!(most(11, 1), "refused");
    }
}
