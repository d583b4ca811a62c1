//! The frame of a page: head, styles, sections.

use std::fmt::Write;

use crate::cli::table::escaped;

/// Styles of all pages.
const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 1040px;
       margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d8dee4; }
p { margin: .4rem 0; } p.note { color: #57606a; font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem;
         margin: 1.2rem 0; }
.tile { border: 1px solid #d8dee4; border-radius: 6px; padding: .5rem .7rem; }
.tile b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.tile span { color: #57606a; font-size: .82rem; }
svg { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #eaeef2;
         vertical-align: top; }
th { border-bottom: 2px solid #d8dee4; } .n { text-align: right; }
td.n { white-space: nowrap; }
tbody tr:hover { background: #f6f8fa; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .82rem; }
details > summary { cursor: pointer; color: #0550ae; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; }
               svg { break-inside: avoid; } }
";

/// A page under construction.
#[derive(Debug)]
pub(super) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with a title and a line under it.
    pub(super) fn new(title: &str, line: &str) -> Self {
        let body = format!(
            "<h1>{}</h1>\n<p class=\"note\">{}</p>\n",
            escaped(title),
            escaped(line)
        );
        Self {
            title: title.to_owned(),
            body,
        }
    }

    /// Figures side by side: what, and how much.
    pub(super) fn tiles(&mut self, tiles: &[(&str, String)]) {
        self.body += "<div class=\"tiles\">\n";
        for (what, value) in tiles {
            let (what, value) = (escaped(what), escaped(value));
            let _ = writeln!(
                self.body,
                "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>"
            );
        }
        self.body += "</div>\n";
    }

    /// Begins a section.
    pub(super) fn section(&mut self, title: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(title));
    }

    /// A paragraph that explains.
    pub(super) fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"note\">{}</p>", escaped(text));
    }

    /// HTML that was made here.
    pub(super) fn html(&mut self, html: &str) {
        self.body += html;
    }

    /// HTML that was made here, folded away.
    pub(super) fn folded(&mut self, title: &str, html: &str) {
        let title = escaped(title);
        let _ = writeln!(
            self.body,
            "<details><summary>{title}</summary>\n{html}</details>"
        );
    }

    /// A text as it stands in its file.
    pub(super) fn text(&mut self, text: &str) {
        let _ = writeln!(self.body, "<pre>{}</pre>", escaped(text));
    }

    /// The file.
    pub(super) fn finish(self) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
             name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
            escaped(&self.title),
            self.body
        )
    }
}
