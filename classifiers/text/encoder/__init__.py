"""The sentence encoder: conversion of weights to an ONNX graph, quantization, card, inference."""
