"""From text to minibatches; imports no framework."""
