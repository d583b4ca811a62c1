//! Files of every kind, and what is wrong with some.

use std::fs;
use std::io::Write;

use super::*;

/// Writes files and returns their folder.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

/// The documents of files, and what was passed over.
fn documents(names: &[PathBuf], text: TextDocuments) -> Result<(Vec<String>, Skipped), DataError> {
    let inputs = Inputs::find(names)?;
    let layout = Layout {
        text,
        field: "text".to_owned(),
    };
    let mut reader = Reader::new(&inputs, &layout);
    let (mut out, mut read) = (Vec::new(), 0);
    for document in &mut reader {
        let document = document?;
        read += document.read;
        out.push(document.text.str(document.range.clone())?.to_owned());
    }
    assert!(read <= inputs.bytes(), "{read} of {} bytes", inputs.bytes());
    Ok((out, reader.skipped))
}

#[test]
fn text_is_cut_as_asked_and_empty_documents_are_counted() {
    let text = "\n\none\ntwo\n \n\n\nthree\n\n---\n\n---\nfour";
    let folder = folder(&[("a.txt", text.as_bytes())]);
    let cut = |kind| documents(&[folder.path().join("a.txt")], kind).unwrap();
    assert_eq!(cut(TextDocuments::File).0, [text]);
    let (paragraphs, skipped) = cut(TextDocuments::BlankLine);
    assert_eq!(paragraphs, ["one\ntwo", "three", "---", "---\nfour"]);
    assert_eq!(skipped.empty, 0);
    let (marked, skipped) = cut(TextDocuments::Mark("---\n".to_owned()));
    assert_eq!(marked, ["\n\none\ntwo\n \n\n\nthree\n\n", "\n", "four"]);
    assert_eq!(skipped.empty, 0);
    let (marked, skipped) = cut(TextDocuments::Mark("\n".to_owned()));
    assert_eq!(marked.concat(), "onetwo three------four");
    assert_eq!(skipped.empty, 6);
}

#[test]
fn folders_patterns_and_packed_files_are_read_in_order() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"{\"text\": \"from gzip\"}\n").unwrap();
    let zstd = zstd::encode_all(&b"from zstd"[..], 1).unwrap();
    let lines =
        "{\"id\": 1, \"text\": \"caf\\u00e9 \\\"x\\\"\"}\n\n{\"text\": null}\n{\"text\":\"z\"}";
    let folder = folder(&[
        ("b/lines.jsonl", lines.as_bytes()),
        ("b/more.json.gz", &gzip.finish().unwrap()),
        ("c.txt.zst", &zstd),
        ("d.bin", b"\0\0"),
        ("e.txt", b""),
        (".hidden", b"x"),
    ]);
    let all = ["café \"x\"", "z", "from gzip", "from zstd"];
    let (found, skipped) = documents(&[folder.path().to_owned()], TextDocuments::File).unwrap();
    assert_eq!(found, all);
    let expected = Skipped {
        hidden: 1,
        binary: 1,
        empty: 2,
    };
    assert_eq!(skipped, expected);
    let pattern = |pattern| vec![folder.path().join(pattern)];
    let (found, _) = documents(&pattern("**/*.{gz,zst}"), TextDocuments::File).unwrap();
    assert_eq!(found, all[2..]);
    let (found, _) = documents(&pattern("*/l*.jsonl"), TextDocuments::File).unwrap();
    assert_eq!(found, all[..2]);
    for missing in ["nothing", "*.none"] {
        let error = documents(&pattern(missing), TextDocuments::File).unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }
}

/// A link's name says what it is: blobs of a Hugging Face cache are named by their checksums.
#[cfg(unix)]
#[test]
fn links_are_read_in_folders_and_by_patterns() {
    let folder = folder(&[("blobs/0a", b"{\"text\": \"linked\"}\n"), ("main/x", b"")]);
    let link = folder.path().join("main/a.jsonl");
    std::os::unix::fs::symlink("../blobs/0a", link).unwrap();
    std::os::unix::fs::symlink("main", folder.path().join("other")).unwrap();
    for name in ["main", "main/a.jsonl", "other", "o*/*.jsonl"] {
        let names = [folder.path().join(name)];
        let (found, _) = documents(&names, TextDocuments::File).unwrap();
        assert_eq!(found, ["linked"], "{name}");
    }
}

#[test]
fn a_line_without_text_is_an_error_with_its_number() {
    for (line, reason) in [
        (
            "{\"body\": \"x\"}",
            "line 2: no field \"text\" in the object",
        ),
        (
            "{\"text\": 7}",
            "line 2: invalid type: integer `7`, expected a string",
        ),
        ("[1]", "line 2: invalid type: sequence, expected an object"),
        ("{\"text\": \"x\"", "line 2: EOF"),
        ("{\"text\": \"x\"} 1", "line 2: trailing characters"),
    ] {
        let folder = folder(&[(
            "a.jsonl",
            format!("{{\"text\": \"y\"}}\n{line}\n").as_bytes(),
        )]);
        let error = documents(&[folder.path().join("a.jsonl")], TextDocuments::File).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}, not {reason}");
    }
}

#[test]
fn a_named_file_that_is_no_text_is_an_error() {
    let folder = folder(&[("a", b"\xff"), ("b", b""), ("c.gz", b"no gzip")]);
    for (name, reason) in [
        ("a", "invalid UTF-8 at byte 0"),
        ("b", "is empty"),
        ("c.gz", "c.gz"),
    ] {
        let error = documents(&[folder.path().join(name)], TextDocuments::File).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[cfg(feature = "parquet")]
mod parquet {
    use std::sync::Arc;

    use ::parquet::basic::{Compression, ZstdLevel};
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;

    use super::*;

    /// A file of some row groups, whose texts may be missing.
    fn write(path: &Path, groups: &[&[Option<&str>]], compression: Compression) {
        let schema = "message m { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .build();
        let file = fs::File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        for rows in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let ids: Vec<i64> = (0..).take(rows.len()).collect();
            column
                .typed::<Int64Type>()
                .write_batch(&ids, None, None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
            let texts: Vec<_> = rows
                .iter()
                .flatten()
                .map(|&text| ByteArray::from(text))
                .collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&texts, Some(&levels), None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn the_texts_of_a_column_come_in_order_and_nulls_are_empty() {
        let folder = tempfile::tempdir().unwrap();
        let many: Vec<String> = (0..1000).map(|row| format!("row {row}")).collect();
        let many: Vec<_> = many.iter().map(|row| Some(&row[..])).collect();
        let groups: [&[_]; 3] = [&[Some("a"), None, Some("é")], &[None, None], &many];
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let path = folder.path().join("a.parquet");
            write(&path, &groups, compression);
            let (found, skipped) = documents(&[path], TextDocuments::File).unwrap();
            assert_eq!(found.len(), 1002);
            assert_eq!(found[..3], ["a", "é", "row 0"]);
            assert_eq!(found[1001], "row 999");
            assert_eq!(skipped.empty, 3);
        }
    }

    #[test]
    fn a_column_that_is_not_there_or_no_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, &[&[Some("a")]], Compression::UNCOMPRESSED);
        let error = |field: &str| {
            let inputs = Inputs::find(std::slice::from_ref(&path)).unwrap();
            let layout = Layout {
                text: TextDocuments::File,
                field: field.to_owned(),
            };
            let mut reader = Reader::new(&inputs, &layout);
            reader.next().unwrap().unwrap_err().to_string()
        };
        assert!(error("body").contains("no column \"body\"; it has id, text"));
        assert!(error("id").contains("column \"id\" is INT64"));
        fs::write(&path, b"PAR1 and nothing else PAR1").unwrap();
        assert!(error("text").contains("a.parquet"));
    }
}
