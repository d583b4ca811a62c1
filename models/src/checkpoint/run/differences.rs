//! In what two configurations differ, leaf by leaf.

use serde_json::Value;

/// Every leaf in which two values differ, as `path: there, here`.
///
/// `there` was read from a file, so `here` is too, in effect: reading may lose the last bit of a
/// number with 17 digits, which is no difference.
pub fn differences(there: &Value, here: &Value) -> Vec<String> {
    let as_read = |text: String| serde_json::from_str(&text).unwrap_or(Value::Null);
    let here = &as_read(here.to_string());
    let mut found = Vec::new();
    collect_differences("", there, here, &mut found);
    found
}

fn collect_differences(path: &str, there: &Value, here: &Value, found: &mut Vec<String>) {
    if let (Value::Object(a), Value::Object(b)) = (there, here) {
        let mut keys: Vec<_> = a
            .keys()
            .chain(b.keys().filter(|key| !a.contains_key(*key)))
            .collect();
        keys.sort();
        for key in keys {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned();
            let (a, b) = (get(a).unwrap_or(Value::Null), get(b).unwrap_or(Value::Null));
            collect_differences(&path, &a, &b, found);
        }
    } else if there != here {
        found.push(format!(
            "{path} is {there} in the checkpoint and {here} here"
        ));
    }
}
