"""The adapter on its way: payload, delivery, engine, worker, and the proof that it is served."""
