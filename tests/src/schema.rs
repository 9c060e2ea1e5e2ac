//! Values against the schemas of an OpenAPI document.

use serde_json::{Map, Value};

/// An OpenAPI 3.1 document. Knows the keywords that ours uses, and refuses others rather than
/// overlook them; unlike JSON Schema it takes a property that isn't documented for an error.
#[derive(Clone, Debug)]
pub struct Document(Value);

/// Keywords that say nothing about which values are valid.
const REMARKS: [&str; 3] = ["description", "format", "minimum"];

impl Document {
    /// Takes a document.
    pub const fn new(document: Value) -> Self {
        Self(document)
    }

    /// Returns all operations: method, path, and the statuses that may come back.
    pub fn operations(&self) -> Vec<(String, String, Vec<u16>)> {
        let mut operations = Vec::new();
        for (path, methods) in self.0["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let responses = operation["responses"].as_object().expect("responses");
                let statuses = responses.keys().map(|status| status.parse().expect(status));
                operations.push((method.to_uppercase(), path.clone(), statuses.collect()));
            }
        }
        operations
    }

    /// Returns what is wrong with an answer.
    pub fn check(&self, method: &str, path: &str, status: u16, answer: &Value) -> Vec<String> {
        let response = &self.0["paths"][path][method.to_lowercase()]["responses"];
        let schema = &response[status.to_string()]["content"]["application/json"]["schema"];
        if schema.is_null() {
            return vec![format!("{method} {path}: {status} is not documented")];
        }
        let mut wrong = Vec::new();
        self.value(schema, answer, &format!("{method} {path}"), &mut wrong);
        wrong
    }

    fn value(&self, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
        let Some(keywords) = schema.as_object() else {
            wrong.push(format!("{at}: {schema} is no schema"));
            return;
        };
        for (keyword, rule) in keywords {
            match keyword.as_str() {
                "$ref" => {
                    let pointer = rule.as_str().unwrap_or_default().trim_start_matches('#');
                    let target = self.0.pointer(pointer).unwrap_or(&Value::Null);
                    self.value(target, value, at, wrong);
                }
                "type" => {
                    if !is_of(rule, value) {
                        wrong.push(format!("{at}: {value} is not of type {rule}"));
                    }
                }
                "properties" => self.properties(keywords, rule, value, at, wrong),
                "required" => {
                    for name in rule.as_array().into_iter().flatten() {
                        if value.get(name.as_str().unwrap_or_default()).is_none() {
                            wrong.push(format!("{at}: {name} is missing"));
                        }
                    }
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.value(rule, item, &format!("{at}[]"), wrong);
                    }
                }
                "additionalProperties" => {
                    for item in value.as_object().into_iter().flat_map(Map::values) {
                        self.value(rule, item, &format!("{at}.*"), wrong);
                    }
                }
                "propertyNames" => {}
                "oneOf" => {
                    let fits = |one: &&Value| {
                        let mut wrong = Vec::new();
                        self.value(one, value, at, &mut wrong);
                        wrong.is_empty()
                    };
                    if rule.as_array().into_iter().flatten().filter(fits).count() != 1 {
                        wrong.push(format!("{at}: {value} is not one of {rule}"));
                    }
                }
                remark if REMARKS.contains(&remark) => {}
                other => wrong.push(format!("{at}: the keyword {other} is not known here")),
            }
        }
    }

    fn properties(
        &self,
        keywords: &Map<String, Value>,
        rule: &Value,
        value: &Value,
        at: &str,
        wrong: &mut Vec<String>,
    ) {
        for (name, item) in value.as_object().into_iter().flatten() {
            match rule.get(name) {
                Some(schema) => self.value(schema, item, &format!("{at}.{name}"), wrong),
                None if keywords.contains_key("additionalProperties") => {}
                None => wrong.push(format!("{at}: {name} is not documented")),
            }
        }
    }
}

/// Returns whether a value is of a type, or of one of several.
fn is_of(rule: &Value, value: &Value) -> bool {
    if let Value::Array(types) = rule {
        return types.iter().any(|one| is_of(one, value));
    }
    match rule.as_str().unwrap_or_default() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_that_differ_from_the_document_are_found() {
        let document = Document::new(json!({
            "paths": {"/a": {"get": {"responses": {"200": {"content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/A"}}}}}}}},
            "components": {"schemas": {"A": {
                "type": "object", "required": ["n"],
                "properties": {
                    "n": {"type": "integer", "minimum": 0},
                    "s": {"type": ["string", "null"]},
                    "l": {"type": "array", "items": {"type": "string"}}
                }
            }}}
        }));
        let wrong = |answer| document.check("GET", "/a", 200, &answer).len();
        assert_eq!(wrong(json!({"n": 1, "s": null, "l": ["x"]})), 0);
        assert_eq!(wrong(json!({"n": "1"})), 1);
        assert_eq!(wrong(json!({"s": 1})), 2);
        assert_eq!(wrong(json!({"n": 1, "l": [1, 2]})), 2);
        assert_eq!(wrong(json!({"n": 1, "other": 1})), 1);
        assert_eq!(document.check("GET", "/a", 404, &json!({})).len(), 1);
        assert_eq!(
            document.operations(),
            [("GET".to_owned(), "/a".to_owned(), vec![200])]
        );
    }
}
