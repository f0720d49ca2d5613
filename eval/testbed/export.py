"""placeholder until the exporter below is written"""
def export_checkpoint(*a): raise NotImplementedError
