"""Encoders of images in ONNX Runtime, without torch: a proxy runs them. `encoder` reads images,
`card` describes a converted encoder, `conversion` makes one; `ocr` reads text in images."""
