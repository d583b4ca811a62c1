//! What a model answered, found in the text that it wrote, and whether it is right.
//!
//! The rules and patterns are those of the harness's tasks. Where it asks a computer algebra
//! system whether two formulas are equal (MATH), this compares their normal forms as strings
//! ([`math`]), which calls fewer answers right.

use std::sync::LazyLock;

use regex::Regex;

use super::outcome::Measure;

pub mod math;

/// What stands for an answer that is not there.
const NONE: &str = "[invalid]";

/// How answers are found and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerRule {
    /// A number: behind `####`, as the examples have it, or the last one in the text.
    Gsm8k,
    /// A letter, behind `answer is`.
    MmluPro,
    /// A formula: in the sentence that the published examples end with, or the last one in a box.
    Math,
}

/// One reading of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which reading.
    pub measure: Measure,
    /// What was found.
    pub answer: String,
    /// Whether that is the right answer.
    pub correct: bool,
}

static HASHES: LazyLock<Regex> = LazyLock::new(|| pattern(r"#### (-?[0-9.,]+)"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"));
static UP_TO_HASHES: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s).*#### "));
static LETTER: LazyLock<Regex> = LazyLock::new(|| pattern(r"answer is \(?([ABCDEFGHIJ])\)?"));

impl AnswerRule {
    /// Every reading of `text`, the strict one first.
    pub fn judge(self, text: &str, gold: &str) -> Vec<Verdict> {
        match self {
            Self::Gsm8k => {
                let strict = HASHES.captures(text).and_then(|found| found.get(1));
                let flexible = NUMBER.find_iter(text).last();
                let verdict = |measure, answer: Option<regex::Match<'_>>| {
                    let answer = answer.map_or(NONE, |found| found.as_str().trim());
                    verdict(measure, answer, plain_number(answer) == plain_number(gold))
                };
                vec![
                    verdict(Measure::ExactMatch, strict),
                    verdict(Measure::FlexibleExtract, flexible),
                ]
            }
            Self::MmluPro => {
                let found = LETTER.captures(text).and_then(|found| found.get(1));
                let answer = found.map_or(NONE, |found| found.as_str());
                let correct = bare(answer) == bare(gold);
                vec![verdict(Measure::ExactMatch, answer, correct)]
            }
            Self::Math => {
                let gold = math::normal_form(gold);
                let read = |measure, answer: Option<&str>| {
                    let answer = answer.map_or_else(|| NONE.to_owned(), math::normal_form);
                    verdict(measure, &answer, answer == gold)
                };
                vec![
                    read(Measure::ExactMatch, math::final_answer(text).as_deref()),
                    read(Measure::BoxedMatch, math::last_boxed(text)),
                ]
            }
        }
    }
}

/// A pattern of this source.
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the tests run every pattern")
}

fn verdict(measure: Measure, answer: &str, correct: bool) -> Verdict {
    Verdict {
        measure,
        answer: answer.to_owned(),
        correct,
    }
}

/// A GSM8K answer without what two spellings of one number may differ in: separators, the dollar,
/// everything up to `####`, a final full stop, case.
fn plain_number(answer: &str) -> String {
    let answer = answer.replace([',', '$'], "");
    let answer = UP_TO_HASHES.replace_all(&answer, "").into_owned();
    answer.strip_suffix('.').unwrap_or(&answer).to_lowercase()
}

/// Without ASCII punctuation and case.
fn bare(answer: &str) -> String {
    let is_kept = |c: &char| !c.is_ascii_punctuation();
    answer
        .chars()
        .filter(is_kept)
        .collect::<String>()
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each reading found and whether it is right.
    fn judged(rule: AnswerRule, text: &str, gold: &str) -> Vec<(String, bool)> {
        let verdicts = rule.judge(text, gold).into_iter();
        verdicts.map(|v| (v.answer, v.correct)).collect()
    }

    #[test]
    fn a_number_is_the_first_behind_hashes_or_the_last_of_all() {
        let gold = "She pays 3 * 400 = <<3*400=1200>>1200.\n#### 1,200";
        let check = |text: &str, strict: (&str, bool), flexible: (&str, bool)| {
            let expected = [strict, flexible].map(|(answer, right)| (answer.to_owned(), right));
            assert_eq!(judged(AnswerRule::Gsm8k, text, gold), expected, "{text}");
        };
        check("So 1200.\n#### 1200", ("1200", true), ("1200", true));
        check("#### 1,200.\n#### 7", ("1,200.", true), ("7", false));
        check("It is $1,200.00 or 1200", (NONE, false), ("1200", true));
        check("It costs $1200.", (NONE, false), ("$1200.", true));
        check("####1200", (NONE, false), ("1200", true));
        check("twelve hundred", (NONE, false), (NONE, false));
        check("#### -1200", ("-1200", false), ("-1200", false));
    }

    #[test]
    fn a_letter_is_the_first_behind_answer_is() {
        let check = |text, expected: (&str, bool)| {
            let expected = [(expected.0.to_owned(), expected.1)];
            assert_eq!(judged(AnswerRule::MmluPro, text, "C"), expected, "{text}");
        };
        check("Thus the answer is (C).", ("C", true));
        check("the answer is C", ("C", true));
        check("The answer is (B). No, the answer is (C).", ("B", false));
        check("The answer is (K).", (NONE, false));
        check("Answer: C", (NONE, false));
    }

    #[test]
    fn a_formula_is_in_the_closing_sentence_or_in_the_last_box() {
        let closing = "Final Answer: The final answer is $\\frac12$. I hope it is correct.";
        let check = |text: &str, expected: [(&str, bool); 2]| {
            let expected = expected.map(|(answer, right)| (answer.to_owned(), right));
            let judged = judged(AnswerRule::Math, text, "\\frac{1}{2}");
            assert_eq!(judged, expected, "{text}");
        };
        check(closing, [("\\frac{1}{2}", true), (NONE, false)]);
        let both = format!("\\boxed{{3}} so \\boxed{{x = \\frac{{1}}{{2}}}}\n{closing}");
        check(&both, [("\\frac{1}{2}", true), ("\\frac{1}{2}", true)]);
        check("It is 1/2.", [(NONE, false), (NONE, false)]);
        let cut = "Final Answer: The final answer is 0.5. ";
        check(cut, [("0.5", false), (NONE, false)]);
    }
}
