"""stub"""
def write(folder):
    return folder
